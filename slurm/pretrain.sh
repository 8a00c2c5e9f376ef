#!/usr/bin/env bash
# Train a recipe on a Slurm cluster, one task a GPU, until it is done. From the checkout, after `make env`:
#
#     slurm/pretrain.sh pretrain_8b data.path=/data/mixture       # on the login node: checks everything, then submits
#     slurm/pretrain.sh --nodes=4 --time=12:00:00 pretrain_4b     # options of sbatch come before the recipe, with =
#     slurm/pretrain.sh --test-only pretrain_8b                   # checks everything, submits nothing
#     sbatch --nodes=8 slurm/pretrain.sh pretrain_8b              # submits at once; the job checks when it starts
#     sbatch slurm/pretrain.sh demo                               # 2 nodes; on nodes without GPUs 2 tasks each
#
# The run goes to run.folder, by default runs/<recipe>-slurm. The same command again goes on with it; another
# configuration in the same folder is refused, or accepted with --accept-changes at the end of the line.
#
# Ranks save on SIGUSR1, which Slurm sends 5 minutes before the time limit, and on SIGTERM, and the job requeues itself.
# Ranks that fail or hang are started again in the same job, from the newest sound checkpoint; after
# survival.max_failures in succession without a new step the job ends. `medx status RUN` tells what happened.
#
# What differs from cluster to cluster (account, partition, container, NCCL) stands in slurm/clusters/NAME.env and is
# read when MEDX_CLUSTER=NAME is set. A job has whole nodes, and so all their GPUs.
#
#SBATCH --job-name=medx
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=USR1@300
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
may_submit=yes
source slurm/job.bash

options=() nodes=() test_only=""
while [[ "${1:-}" == -* ]]; do
    [[ "$1" == --* ]] || refuse "option $1" "options of sbatch by their long names, --name=value" "$usage"
    [[ "$1" != --nodes=* ]] || nodes=(--nodes "${1#--nodes=}")
    if [[ "$1" == --test-only ]]; then test_only=yes; else options+=("$1"); fi
    shift
done
[[ $# -gt 0 ]] || refuse "no recipe" "the name of one, then overrides" "sbatch slurm/pretrain.sh pretrain_8b"
recipe=() accept=()
for word in "$@"; do
    case "$word" in
        --accept-changes) accept=("$word") ;;
        -*) refuse "$word behind the recipe" "overrides section.field=value, or --accept-changes" \
            "remove it; options of sbatch come first, and a run that is there is resumed without being asked to" ;;
        *) recipe+=("$word") ;;
    esac
done

submit() { # the login node's part: nothing is queued that the job would refuse
    local tasks_per_node="${MEDX_GPUS_PER_NODE:-}" answer gpus said number run memory=(--gpu-gb "${MEDX_GPU_GB:-80}")
    local gpus_of_gres='gpu:([^:,(]+:)?([0-9]+)' # as in gpu:8 and gpu:h100:8(S:0-1)
    if [[ -z "$tasks_per_node" ]]; then
        gpus="$(sinfo --noheader --format=%G ${SBATCH_PARTITION:+--partition="$SBATCH_PARTITION"})"
        tasks_per_node=2
        if [[ "$gpus" =~ $gpus_of_gres ]]; then tasks_per_node="${BASH_REMATCH[2]}"; else memory=(); fi
    fi
    answer="$("${alone[@]}" job check "${recipe[@]}" "${accept[@]}" "${nodes[@]}" \
        --tasks-per-node "$tasks_per_node" "${memory[@]}")"
    head --lines=-1 <<< "$answer"
    read -r _ number run <<< "${answer##*$'\n'}"
    options=(--nodes="$number" --job-name="medx-${run##*/}" "${options[@]}")
    said="$(sbatch --test-only "${options[@]}" "$0" "$@" 2>&1)" || refuse "sbatch --test-only ${options[*]}: $said" \
        "account, partition and nodes that Slurm grants" "set SBATCH_ACCOUNT, SBATCH_PARTITION, ... in \
slurm/clusters/NAME.env and MEDX_CLUSTER=NAME, or give --account=..., --partition=..., --nodes=... before the recipe"
    if [[ -n "$test_only" ]]; then
        echo "nothing is submitted, $number nodes would be; its folder: $run"
        return
    fi
    echo "job $(sbatch --parsable "${options[@]}" "$0" "$@") is submitted, $number nodes; its state: medx status $run"
}

if [[ -z "${SLURM_JOB_ID:-}" ]]; then
    submit "$@"
    exit
fi

# One task for each GPU of a node; on nodes without GPUs 2, for trying.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
gpus="${SLURM_GPUS_ON_NODE:-0}"
per_node="${MEDX_GPUS_PER_NODE:-${SLURM_NTASKS_PER_NODE:-$gpus}}"
((per_node > 0)) || per_node=2
tasks=$((per_node * ${#hosts[@]}))
cpus="$(tr ',' '\n' <<< "${SLURM_JOB_CPUS_PER_NODE:-1}" | sed 's/(.*//' | sort --numeric-sort | head --lines=1)"
export SRUN_CPUS_PER_TASK=$((cpus > per_node ? cpus / per_node : 1))
if ((gpus > 0)); then srun_options+=(--gres="gpu:$gpus"); fi # of an exclusive job a step has none by itself

# What each task reads beside Slurm's own SLURM_PROCID, SLURM_LOCALID and SLURM_NTASKS
export MASTER_ADDR="${hosts[0]}"
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}" # Megatron's overlap of tensor parallelism

restart="${SLURM_RESTART_COUNT:-0}"
echo "job $SLURM_JOB_ID, restart $restart: $tasks tasks on ${#hosts[@]} nodes, meeting on $MASTER_ADDR"
answer="$("${alone[@]}" job begin "${recipe[@]}" "${accept[@]}" --tasks "$tasks" --tasks-per-node "$per_node")"
head --lines=-1 <<< "$answer"
read -r word ranks run <<< "${answer##*$'\n'}"
[[ "$word" == go ]] || exit 0

step="" signalled="" heard="" leaving="" code=0 num_steps=0
job_facts() { scontrol --oneliner show job "$SLURM_JOB_ID" || true; }
# Signals that reach this script. Of a job that Slurm ends, ranks have SIGTERM as well, and there are only seconds left
# to write down why. A signal to this script alone is handed on as SIGUSR1, since on SIGTERM srun would kill its tasks.
hear() {
    signalled=yes heard=yes
    if [[ "$1" == TERM && ! "$(job_facts)" =~ JobState=RUNNING|Reason=TimeLimit ]]; then
        leaving=yes
    elif [[ -n "$step" ]]; then
        kill -USR1 "$step" 2> /dev/null || true
    fi
}
trap 'hear USR1' USR1
trap 'hear TERM' TERM

run_step() { # tasks, options of srun and a command; leaves its exit code in `code`
    local num_tasks="$1" layout=(--ntasks-per-node="$per_node")
    shift
    ((num_tasks % per_node == 0)) || layout=(--distribution="plane=$per_node") # nodes full but for the last
    # a new port for each: the one before may still be in use by what is left of a killed rank
    num_steps=$((num_steps + 1))
    export MASTER_PORT=$((20000 + (SLURM_JOB_ID * 64 + restart * 16 + num_steps) % 12000))
    srun "${srun_options[@]}" --nodes=$(((num_tasks + per_node - 1) / per_node)) --ntasks="$num_tasks" "${layout[@]}" \
        "$@" &
    step=$!
    heard=yes
    while [[ -n "$heard" && -z "$leaving" ]]; do # a signal ends `wait` before the step has ended
        heard="" code=0
        wait "$step" || code=$?
    done
    step=""
}

while true; do
    of=launch code=75 # as ranks that saved on a signal
    if [[ -z "$signalled" ]]; then
        of=preflight
        run_step "$tasks" "${medx[@]}" job preflight "$run"
        if ((code == 0)); then
            of=launch
            run_step "$ranks" --kill-on-bad-exit=1 \
                "${medx[@]}" train "${recipe[@]}" --auto-resume --nproc "$ranks" run.folder="$run"
        fi
    fi
    answer="$("${alone[@]}" job next "$run" --of "$of" --code "$code" --job "$(job_facts)")"
    read -r word code <<< "${answer##*$'\n'}"
    echo "job $SLURM_JOB_ID: $word: $(head --lines=-1 <<< "$answer")"
    [[ -z "$leaving" ]] || wait # for ranks that save
    case "$word" in
        again) ;;
        requeue)
            # it fails where Slurm has requeued the job by itself
            said="$(scontrol requeue "$SLURM_JOB_ID" 2>&1)" || [[ "$said" == *pending* ]] || refuse \
                "scontrol requeue $SLURM_JOB_ID: $said" "a job that may be requeued" "submit the same again"
            exit 0
            ;;
        *) exit "${code:-0}" ;;
    esac
done
