#!/usr/bin/env bash
# Build a data folder on many nodes, by job arrays of datatrove, and wait for it. From the checkout, after `make env`:
#
#     sbatch slurm/data.sh corpora/reports data/reports --splits train=0.98,val=0.02
#     sbatch slurm/data.sh corpora/ct data/ct --slurm cpus_per_task=2,mem_per_cpu_gb=4,workers=200,time=08:00:00
#     sbatch --partition=cpu slurm/data.sh corpora/ct data/ct     # options of sbatch come first
#
# This job, of one node without GPUs, cuts the source into tasks, submits an array that does them and a job that merges
# what they made, and ends when the data folder is whole: so that training can be submitted behind it with
# `sbatch --dependency=afterok:JOBID slurm/pretrain.sh RECIPE data.path=OUT`. --slurm says what else the array's jobs
# are to have: `workers` at once, `tasks_per_job`, `cpus_per_task`, `mem_per_cpu_gb`, `time` of each, any option of
# sbatch; partition, account and SBATCH_QOS are those of this job unless they are named.
#
# Jobs that fail are submitted again, twice, with the tasks that are not done. A job that was preempted starts again by
# itself. If this one reaches its time limit, its array goes on; submit the same again, and it waits for that array, or
# does what is left. Containers (MEDX_CONTAINER) have no sbatch: from one, this job builds alone, on all its CPUs.
# Settings of the cluster: as for slurm/pretrain.sh.
#
#SBATCH --job-name=medx-data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=4G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append

set -euo pipefail

# Slurm runs a copy of this file from its spool; the checkout is where sbatch was called.
cd "${SLURM_SUBMIT_DIR:-.}"
usage="sbatch slurm/data.sh SOURCE OUT [options of medx data build]"
[[ -f slurm/job.bash ]] || { # which has `refuse`
    printf 'found:  %s is no checkout: no slurm/job.bash\nneeded: a submission from the checkout\n' "$PWD" >&2
    printf 'do:     cd to the checkout, then %s\n' "$usage" >&2
    exit 2
}
source slurm/job.bash
[[ $# -ge 2 && "$1" != -* && "$2" != -* ]] || refuse "${*:-no words}" "source and output first" "$usage"
out="$2" words=() overwrite="" settings="" poll_s="${MEDX_POLL_S:-15}"
while [[ $# -gt 0 ]]; do
    case "$1" in
        --slurm)
            settings="${2:?--slurm needs NAME=VALUE,...}"
            shift
            ;;
        --slurm=*) settings="${1#--slurm=}" ;;
        --overwrite) overwrite=yes && words+=("$1") ;;
        *) words+=("$1") ;;
    esac
    shift
done

# The array's jobs are found by a name that OUT alone decides, so that a second submission sees those of the first.
# A job behind one that failed is removed instead of waiting for ever.
asked="$settings" name="medx-data-$(realpath -m "$out" | cksum | cut -d' ' -f1)"
for setting in "partition=${SLURM_JOB_PARTITION:-}" "account=${SLURM_JOB_ACCOUNT:-}" "qos=${SBATCH_QOS:-}" \
    time=04:00:00 kill-on-invalid-dep=yes; do
    [[ ",$settings" == *",${setting%%=*}="* || -z "${setting#*=}" ]] || settings+=",$setting"
done
settings="${settings#,},job_name=$name"

# What this job is given must not reach the jobs that it submits: their srun would ask for this one's CPUs, and sbatch
# would prefer SBATCH_GPUS_PER_NODE and its like of the cluster file to what --slurm says.
unset_here=()
for variable in $(compgen -A export SLURM_) $(compgen -A export SRUN_) $(compgen -A export SBATCH_); do
    [[ "$variable" == SLURM_CONF ]] || unset_here+=(-u "$variable")
done

is_whole() { [[ (-f "$out/manifest.json" || -f "$out/splits.json") && ! -e "$out/.build" ]]; }
living() { squeue --noheader --me --name="$name,$name-merge" --format=%i; }

echo "job $SLURM_JOB_ID: medx data build ${words[*]} --slurm $settings"
if [[ "${SLURM_RESTART_COUNT:-0}" -gt 0 && -z "$overwrite" ]] && is_whole; then
    echo "$out is whole: the jobs of the start before this one finished it"
    exit 0
fi
if [[ -n "$image" ]]; then
    [[ -z "$asked" ]] || refuse "--slurm $asked, and MEDX_CONTAINER=$image" \
        "an environment that has sbatch, which containers lack" "leave --slurm out: this node does all of it"
    exec srun "${srun_options[@]}" "${medx[@]}" data build --workers "$SRUN_CPUS_PER_TASK" "${words[@]}"
fi
for round in 1 2 3; do
    until jobs="$(living)"; do sleep "$poll_s"; done # a controller that does not answer is asked again
    if [[ -n "$jobs" ]]; then
        echo "round $round: jobs of an earlier submission are at work"
    else
        env "${unset_here[@]}" medx data build "${words[@]}" --slurm "$settings"
    fi
    until jobs="$(living)" && [[ -z "$jobs" ]]; do sleep "$poll_s"; done
    if is_whole; then
        echo "$out is whole"
        exit 0
    fi
    echo "round $round: jobs ended and $out is not whole; logs: $out/slurm" >&2
done
refuse "$out is not whole after $round rounds" "tasks that succeed" \
    "read $out/slurm/tasks/slurm_logs, mend what they say, submit the same again: done tasks are kept"
