#!/usr/bin/env bash
# Writes a stand-in for a CUDA toolkit into the folder $1: enough for `cargo check --features cuda` without CUDA or a GPU.
# Its nvcc answers what build scripts ask and creates the files that they expect, empty. Nothing built with it can run.
set -euo pipefail
mkdir -p "$1/bin" "$1/include" "$1/lib64/stubs"
cat > "$1/bin/nvcc" <<'NVCC'
#!/usr/bin/env bash
set -euo pipefail
folder='' output='' sources=()
while (($#)); do
  case $1 in
    --version) printf 'nvcc: stand-in\n\n\nCuda compilation tools, release 13.0, V13.0.0\n'; exit ;;
    --list-gpu-code) printf 'sm_80\nsm_90\n'; exit ;;
    --output-directory) folder=$2; shift ;;
    -o) output=$2; shift ;;
    *.cu) sources+=("$1") ;;
  esac
  shift
done
if [[ -n $output ]]; then : > "$output"; fi
if [[ -n $folder ]]; then
  for source in "${sources[@]}"; do
    name=${source##*/}
    : > "$folder/${name%.cu}.ptx"
  done
fi
NVCC
chmod +x "$1/bin/nvcc"
