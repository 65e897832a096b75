#!/bin/bash
# Runs a study of studies/ on a SLURM cluster: every training, then every curve, on all GPUs of the job; then its report.
#
#   sbatch --nodes=2 docs/slurm.sh cifar10
#
# Type this in the repository's root, on a file system that all nodes see, after `make install`. Adapt the lines below to
# your cluster. If the job ends early, finished work is kept, and trainings continue from their last checkpoint: submit the
# same line again, or let SLURM do it (--requeue; at the time limit, the signal).
#SBATCH --job-name=nfe-bench
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
set -euo pipefail

study=${1:-}
graph=studies/$study/dvc.yaml
if ! [[ $study =~ ^[A-Za-z0-9_]+$ && -f $graph ]]; then
  echo "error: sbatch docs/slurm.sh NAME, in the repository's root; NAME is a folder of studies/" >&2
  exit 1
fi
export PATH=$PWD/.venv/bin:$PATH
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1

# srun runs in the background, so that the shell handles the signal at once and not at the end of the step.
step() {
  srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 "$@" &
  wait "$!"
}

# Run one process on the first node.
alone() {
  step --nodes=1 --ntasks=1 "$@"
}

# Run a stage of one row on all nodes: one launcher per node; one process per GPU, or PER_NODE processes per node.
together() {
  step --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${PER_NODE:-gpu}" --rdzv-backend=c10d \
    --rdzv-endpoint="$(hostname):$((20000 + SLURM_JOB_ID % 10000))" --rdzv-id="$SLURM_JOB_ID" \
    -m "stages.$1" --name "$study" --row "$2"
}

alone dvc repro "$graph:reference" "$graph:autoencode" # and the stages before them: rows, data, extractor
for row in "build/$study/rows/models/"*.json; do
  together train "$(basename "$row" .json)"
done
alone python -m stages.grids --name "$study"
for row in "build/$study/rows/curves/"*.json; do
  together sweep "$(basename "$row" .json)"
done
# These stages now take their results from .cache; the others run side by side, one per GPU.
alone make study "NAME=$study" "J=${SLURM_GPUS_ON_NODE:-1}"
