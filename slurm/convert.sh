#!/usr/bin/env bash
# Convert a checkpoint on a node without GPUs, and prove the result. From the checkout, after `make env`:
#
#     sbatch slurm/convert.sh to-hf runs/pretrain_8b/checkpoints hf/ours --dtype bf16
#     sbatch slurm/convert.sh to-megatron hf/Qwen3-VL-8B-Instruct checkpoints/start
#     sbatch --partition=cpu --cpus-per-task=16 slurm/convert.sh to-hf runs/a hf/a   # options of sbatch come first
#     sbatch slurm/convert.sh average hf/mean runs/a runs/b --hf                     # any other `medx convert ...`
#
# A conversion gets as many --workers as the task has CPUs, unless they are named. Where it keeps every bit (without
# --dtype, --only, --vision-from and --add-tokens), `medx convert verify` then compares both sides, and the job succeeds
# only if they are equal. This reads both once more; MEDX_VERIFY=0 leaves it out. Of a run that still trains, name one
# iter_ folder: the newest may be another one by then.
#
# A job that was preempted or whose node failed starts again by itself and goes on where it stood. After a time limit,
# submit the same again. Settings of the cluster: as for slurm/pretrain.sh.
#
#SBATCH --job-name=medx-convert
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append

set -euo pipefail

# Slurm runs a copy of this file from its spool; the checkout is where sbatch was called.
cd "${SLURM_SUBMIT_DIR:-.}"
usage="sbatch slurm/convert.sh to-hf CKPT OUT [options]"
[[ -f slurm/job.bash ]] || { # which has `refuse`
    printf 'found:  %s is no checkout: no slurm/job.bash\nneeded: a submission from the checkout\n' "$PWD" >&2
    printf 'do:     cd to the checkout, then %s\n' "$usage" >&2
    exit 2
}
source slurm/job.bash
[[ $# -gt 0 ]] || refuse "no direction" "to-hf, to-megatron or another word of medx convert" "$usage"

echo "job $SLURM_JOB_ID: medx convert $* on ${SLURMD_NODENAME:-$HOSTNAME}, $SRUN_CPUS_PER_TASK CPUs"
if [[ "$1" != to-hf && "$1" != to-megatron ]]; then
    exec srun "${srun_options[@]}" "${medx[@]}" convert "$@"
fi

[[ $# -ge 3 && "$2" != -* && "$3" != -* ]] || refuse "medx convert $*" "source and output right behind $1" "$usage"
source_path="$2" out="$3" workers=(--workers "$SRUN_CPUS_PER_TASK") overwrite="" inexact=""
for word in "${@:4}"; do
    case "$word" in
        --workers | --workers=*) workers=() ;;
        --overwrite) overwrite=yes ;;
        --dtype | --only | --vision-from | --add-tokens | --dry-run) inexact="$word" ;;
        --dtype=* | --only=* | --vision-from=* | --add-tokens=*) inexact="${word%%=*}" ;;
    esac
done

if [[ "${SLURM_RESTART_COUNT:-0}" -gt 0 && -e "$out" && -z "$overwrite" ]]; then
    echo "$out is there: the start before this one finished it" # an output has its name only when it is whole
else
    srun "${srun_options[@]}" "${medx[@]}" convert "$@" "${workers[@]}"
fi

if [[ -n "$inexact" ]]; then
    echo "not verified: with $inexact the output is no copy, bit for bit, of the source"
elif [[ "${MEDX_VERIFY:-1}" == 0 ]]; then
    echo "not verified: MEDX_VERIFY=0"
else
    srun "${srun_options[@]}" "${medx[@]}" convert verify "$source_path" "$out"
fi
