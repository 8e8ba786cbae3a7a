#!/bin/bash
# `cargo run --release --bin NAME -- ARGUMENTS` is the program NAME; an example is there; what else cargo does is not done.
if [[ $1 != run ]]; then
  if [[ $1 == new ]]; then mkdir -p "${*: -1}/src"; fi
  exit 0
fi
while [[ $# -gt 0 && $1 != --bin && $1 != --example ]]; do shift; done
kind=$1 name=$2
if [[ $kind == --example ]]; then exec test -f "$WORKSPACE/tinyonn/examples/$name.rs"; fi
if [[ -z $kind ]]; then exit 0; fi
shift 2
if [[ $1 == -- ]]; then shift; fi
exec "$name" "$@"
