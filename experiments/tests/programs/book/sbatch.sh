#!/bin/bash
# Every task of the array, one behind the other.
last=$(sed -n 's/^#SBATCH --array=0-//p' "$1")
for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task /bin/bash -e "$1" || exit; done
