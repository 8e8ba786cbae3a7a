#!/usr/bin/env bash
# Runs all targets side by side and goes on behind what one finds: bash fuzz/run.sh OUT SECONDS [BINARY]
#
# A target has as many processes as there are cores for each of them, one at least: on 32 cores two, which do in 300 seconds what one does in 600.
# CORES is how many cores there are, by default all.
# BINARY, `any` beside this script if not given, is the target of that name, built; `corpus` and `dictionaries` beside this script are what `seeds.py` writes.
# OUT gets `summary.md`, a row a target; where something was found, `findings.txt`, what each said when it was read again, and the inputs themselves, some of them.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
seconds=$2
binary=$(realpath "${3:-$here/any}")
left=17
targets=("$here/corpus/"*)
jobs=$((${CORES:-$(nproc)} / ${#targets[@]}))
jobs=$((jobs > 1 ? jobs : 1))
work=$(mktemp -d "$([[ -w /dev/shm ]] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/fuzz-XXXXXX")
trap 'rm -rf "$work"' EXIT
# One core a process: pools of threads would take each other's.
export RAYON_NUM_THREADS=1 RUST_BACKTRACE=0 TMPDIR=$work TINYONN_FUZZ_DIR=$work
limits=(-timeout=20 -rss_limit_mb=4096 -malloc_limit_mb=4096)

# measured FILE COMMAND..: runs it; FILE gets the most memory that one of its processes held, in MB, and the seconds that they computed.
measured() {
  python3 - "$@" <<'END'
import resource, subprocess, sys
subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    print(used.ru_maxrss // 1024, round(used.ru_utime + used.ru_stime), file=file)
END
}

fuzz() {
  local place=$work/$1
  mkdir -p "$place/corpus" "$place/found"
  TINYONN_FUZZ_TARGET=$1 measured "$place/used" "$binary" "$place/corpus" "$here/corpus/$1" -fork="$jobs" -ignore_crashes=1 -ignore_timeouts=1 -ignore_ooms=1 \
    -max_total_time="$seconds" -max_len=16384 -dict="$here/dictionaries/$1.dict" -artifact_prefix="$place/found/" "${limits[@]}" > "$place/log" 2>&1 || true
}

for target in "${targets[@]}"; do
  fuzz "$(basename "$target")" &
done
wait

{
  echo "$seconds seconds, $jobs processes a target."
  echo
  echo '| target | executions | edges covered | largest process, MB | CPU seconds | findings |'
  echo '|---|---|---|---|---|---|'
} > "$out/summary.md"
for target in "${targets[@]}"; do
  target=$(basename "$target")
  place=$work/$target
  last=$(grep -aE '^#[0-9]+: cov:' "$place/log" | tail -1 | sed -E 's/^#([0-9]+): cov: ([0-9]+) .*/\1 | \2/' || true)
  read -r memory computed < "$place/used"
  # What was slow, but not too slow, is no finding.
  mapfile -t found < <(find "$place/found" -type f ! -name 'slow-unit-*' | sort)
  echo "| $target | ${last:-no progress: $(tail -1 "$place/log") |} | $memory | $computed | ${#found[@]} |" >> "$out/summary.md"
  for file in "${found[@]:0:30}"; do
    said=$(TINYONN_FUZZ_TARGET=$target timeout 60 "$binary" "${limits[@]}" "$file" 2>&1 | grep -aE -A1 'panicked|memory allocation|ERROR: libFuzzer' | cut -c1-300 | head -4 || true)
    echo "$target $(basename "$file"): ${said:-nothing, when it was read alone}" >> "$out/findings.txt"
    if (( left > 0 )) && [[ $(stat -c %s "$file") -lt 65536 ]]; then
      cp "$file" "$out/$target-$(basename "$file")"
      left=$((left - 1))
    fi
  done
done
cat "$out/summary.md"
