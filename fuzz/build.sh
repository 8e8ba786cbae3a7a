#!/usr/bin/env bash
# Builds all targets on the pinned toolchain as `cargo fuzz build --sanitizer none` does on a nightly one: bash fuzz/build.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
coverage=(-Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  coverage+=("-Cllvm-args=-sanitizer-coverage-$option")
done
export RUSTFLAGS="${coverage[*]} --cfg fuzzing -Cllvm-args=-simplifycfg-branch-fold-threshold=0"
# What both have is of the versions that the library is tested with.
cp ../Cargo.lock Cargo.lock
# Named, the machine's own target leaves build scripts without coverage.
cargo build --release --target "$(rustc -vV | sed -n 's/^host: //p')" "$@"
