#!/usr/bin/env bash
# Train a recipe on a Slurm cluster, one task a GPU. From the checkout, after `make env`:
#
#     medx train pretrain_8b --dry-run                                   # describes the run, on the login node
#     sbatch slurm/pretrain.sh align_8b data.path=/data/captions         # 8 nodes of 8 GPUs
#     sbatch slurm/pretrain.sh pretrain_8b data.path=/data/mixture       # then this, from runs/align_8b
#     sbatch --nodes=4 slurm/pretrain.sh pretrain_4b run.folder=runs/a   # options of sbatch come before the script
#     sbatch slurm/pretrain.sh pretrain_8b --resume                      # goes on from the last checkpoint
#
# What differs from cluster to cluster (account, partition, modules, NCCL) stands in slurm/clusters/NAME.env and is
# read when MEDX_CLUSTER=NAME is set. Options for sbatch itself can be given as SBATCH_ACCOUNT, SBATCH_PARTITION, ...
#
#SBATCH --job-name=medx
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append

set -euo pipefail

refuse() { # found, needed, do
    printf 'found:  %s\nneeded: %s\ndo:     %s\n' "$1" "$2" "$3" >&2
    exit 2
}

[[ -n "${SLURM_JOB_ID:-}" ]] || refuse "no SLURM_JOB_ID" "a Slurm job" "sbatch slurm/pretrain.sh RECIPE [overrides]"
[[ $# -gt 0 ]] || refuse "no recipe" "the name of one, then overrides" "sbatch slurm/pretrain.sh pretrain_8b"

# Slurm runs a copy of this file from its spool; the checkout is where sbatch was called.
cd "$SLURM_SUBMIT_DIR"

if [[ -n "${MEDX_CLUSTER:-}" ]]; then
    settings="slurm/clusters/$MEDX_CLUSTER.env"
    [[ -f "$settings" ]] || refuse "MEDX_CLUSTER=$MEDX_CLUSTER, but no $settings in $PWD" \
        "a file with the cluster's settings" "copy slurm/clusters/example.env to it, or unset MEDX_CLUSTER"
    # shellcheck source=/dev/null
    source "$settings"
fi

venv="${MEDX_VENV:-.venv}"
if [[ -f "$venv/bin/activate" ]]; then
    # shellcheck source=/dev/null
    source "$venv/bin/activate"
fi
command -v medx > /dev/null || refuse "no medx on the PATH and none in $PWD/$venv" \
    "the environment on a file system that every node sees" "make env in the checkout, or set MEDX_VENV"

# What each task reads beside Slurm's own SLURM_PROCID, SLURM_LOCALID and SLURM_NTASKS; the port follows the job id.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR="${hosts[0]}"
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}" # Megatron's overlap of tensor parallelism
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not inherit it from sbatch since 22.05

echo "job $SLURM_JOB_ID: $SLURM_NTASKS tasks on ${#hosts[@]} nodes, meeting on $MASTER_ADDR"
srun --kill-on-bad-exit=1 medx train "$@" --nproc "$SLURM_NTASKS"
