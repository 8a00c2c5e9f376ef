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

# Slurm runs a copy of this file from its spool; the checkout is where sbatch was called.
cd "${SLURM_SUBMIT_DIR:-.}"
usage="sbatch slurm/pretrain.sh RECIPE [overrides]"
[[ -f slurm/job.bash ]] || { # which has `refuse`
    printf 'found:  %s is no checkout: no slurm/job.bash\nneeded: a submission from the checkout\n' "$PWD" >&2
    printf 'do:     cd to the checkout, then %s\n' "$usage" >&2
    exit 2
}
source slurm/job.bash
[[ $# -gt 0 ]] || refuse "no recipe" "the name of one, then overrides" "sbatch slurm/pretrain.sh pretrain_8b"

# What each task reads beside Slurm's own SLURM_PROCID, SLURM_LOCALID and SLURM_NTASKS; the port follows the job id.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR="${hosts[0]}"
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}" # Megatron's overlap of tensor parallelism

echo "job $SLURM_JOB_ID: $SLURM_NTASKS tasks on ${#hosts[@]} nodes, meeting on $MASTER_ADDR"
srun --kill-on-bad-exit=1 medx train "$@" --nproc "$SLURM_NTASKS"
