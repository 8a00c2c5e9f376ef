# What every script here does first; sourced by slurm/*.sh in the checkout, with `usage` set to how the job is submitted.
# Refuses what cannot work, reads the cluster's settings, and says how medx is called in its environment:
#
#     srun "${srun_options[@]}" ... "${medx[@]}" train ...     # as tasks of a job step
#     "${alone[@]}" job next ...                               # as one process on the first node
#
# The environment is the virtual one of the checkout (or MEDX_VENV), or with MEDX_CONTAINER=IMAGE a container, which
# srun starts by its option --container-image (pyxis), or Apptainer in each task.
# shellcheck shell=bash

refuse() { # found, needed, do
    printf 'found:  %s\nneeded: %s\ndo:     %s\n' "$1" "$2" "$3" >&2
    exit 2
}

[[ -n "${SLURM_JOB_ID:-}" || -n "${may_submit:-}" ]] || refuse "no SLURM_JOB_ID" "a Slurm job" "${usage:?}"

if [[ -n "${MEDX_CLUSTER:-}" ]]; then
    settings="slurm/clusters/$MEDX_CLUSTER.env"
    [[ -f "$settings" ]] || refuse "MEDX_CLUSTER=$MEDX_CLUSTER, but no $settings in $PWD" \
        "a file with the cluster's settings" "copy slurm/clusters/example.env to it, or unset MEDX_CLUSTER"
    set +u # what `module load` runs may read variables that are not set
    # shellcheck source=/dev/null
    source "$settings"
    set -u
fi

srun_options=() medx=(medx) alone=(medx)
image="${MEDX_CONTAINER:-}"
if [[ -n "$image" ]]; then
    # a path, unless it names a registry: docker://..., nvcr.io#nvidia/...
    if [[ "$image" == [./]* || "$image" == *.sqsh || "$image" == *.sif ]] && [[ ! -e "$image" ]]; then
        refuse "MEDX_CONTAINER=$image, but no such file on ${SLURMD_NODENAME:-$HOSTNAME}" \
            "a container image that every node sees" "correct the path, or import the image there (docs/cluster.md)"
    fi
    runtime="${MEDX_CONTAINER_RUNTIME:-}"
    if [[ -z "$runtime" ]]; then
        if srun --help 2>&1 | grep -q -- --container-image; then runtime=pyxis; else runtime=apptainer; fi
    fi
    mounts="$PWD:$PWD${MEDX_CONTAINER_MOUNTS:+,$MEDX_CONTAINER_MOUNTS}"
    case "$runtime" in
        pyxis)
            srun_options=(--container-image="$image" --container-mounts="$mounts" --container-workdir="$PWD")
            alone=(srun --nodes=1 --ntasks=1 --overlap "${srun_options[@]}" medx)
            ;;
        apptainer)
            command -v apptainer > /dev/null || refuse "MEDX_CONTAINER=$image, but no apptainer on the PATH of \
${SLURMD_NODENAME:-$HOSTNAME}, and srun has no --container-image" "Apptainer, or pyxis in Slurm" \
                "load its module in slurm/clusters/NAME.env, or unset MEDX_CONTAINER and use a virtual environment"
            medx=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$image" medx)
            alone=("${medx[@]}")
            ;;
        *) refuse "MEDX_CONTAINER_RUNTIME=$runtime" "pyxis or apptainer" "set one of them, or unset it" ;;
    esac
    # Slurm's commands are not in the image: whether the job that holds a run folder still lives is looked up here
    MEDX_LIVE_JOBS="$(squeue --noheader --format=%A | tr '\n' ' ')"
    export MEDX_LIVE_JOBS
fi

venv="${MEDX_VENV:-.venv}"
if [[ -f "$venv/bin/activate" ]]; then
    # shellcheck source=/dev/null
    source "$venv/bin/activate"
fi
if [[ -z "$image" ]]; then
    command -v medx > /dev/null || refuse "no medx on the PATH and none in $PWD/$venv" \
        "the environment on a file system that every node sees" "make env in the checkout, or set MEDX_VENV"
fi

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not inherit it from sbatch since 22.05
