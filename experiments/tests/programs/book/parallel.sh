#!/bin/bash
# `parallel COMMAND {} ::: ITEM ..`, one behind the other.
command=()
while [[ $# -gt 0 && $1 != ::: ]]; do command+=("$1"); shift; done
shift
for item; do "${command[@]//\{\}/$item}" || exit; done
