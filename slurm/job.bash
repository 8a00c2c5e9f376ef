# What every job here does first; sourced by slurm/*.sh in the checkout, with `usage` set to how the job is submitted.
# Refuses what cannot work, reads the cluster's settings, enters the environment, and says what tasks inherit.
# shellcheck shell=bash

refuse() { # found, needed, do
    printf 'found:  %s\nneeded: %s\ndo:     %s\n' "$1" "$2" "$3" >&2
    exit 2
}

[[ -n "${SLURM_JOB_ID:-}" ]] || refuse "no SLURM_JOB_ID" "a Slurm job" "${usage:?}"

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

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not inherit it from sbatch since 22.05
