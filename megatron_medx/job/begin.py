"""Before ranks start: everything that can be refused is refused here, once, on the login node and again in the job.

`check_job` looks only; `begin_job` also takes the lock of the run folder and writes the first event.
"""

import os
from dataclasses import dataclass, replace

from megatron_medx.config.checkpoint_folders import CHECKPOINTS
from megatron_medx.config.checks import check, check_files
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError, MedxError, ParallelismError
from megatron_medx.job.elastic import choose_ranks, with_ranks
from megatron_medx.run_folder import events, lock
from megatron_medx.run_folder.integrity import tracked_step
from megatron_medx.run_folder.same_run import changes, check_same_run, former_config


@dataclass(frozen=True, slots=True)
class Start:
    """What a job may start."""

    config: RunConfig
    """Checked, with the run's folder and number of ranks."""
    is_finished: bool
    """Nothing is left to do."""
    notes: tuple[str, ...]
    """What a person should know beside the description of the run."""


def begin_job(config: RunConfig, tasks: int, tasks_per_node: int, accept_changes: bool) -> Start:
    """Take the run folder for this Slurm job and say how many ranks to start in it.

    Args:
        config: recipe with overrides; without run.folder it is `runs/<recipe>-slurm`.
        tasks: one a GPU, of which some may stay idle.
        tasks_per_node: of them.
        accept_changes: go on with the run in the folder although its configuration differs.

    Raises:
        ConfigError, ParallelismError: the run cannot start; a job that held the folder gives it back.
    """
    config = in_its_folder(config)
    folder, job = config.run_folder, os.environ["SLURM_JOB_ID"]
    restart = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    try:
        start = _judge(config, tasks, tasks_per_node, accept_changes, is_restart=restart > 0)
        lock.acquire(folder)
    except MedxError as error:
        if lock.is_ours(folder):  # it waited in the queue to go on
            events.append(folder, "job_ended", job=job, code=2, why=error.found)
            lock.release(folder)
        raise
    former = former_config(folder)
    accepted = {"accepted": changes(former, config)} if former and changes(former, config) else {}
    hosts = os.environ.get("SLURM_JOB_NODELIST", "")
    events.append(folder, "job_started", job=job, restart=restart, tasks=tasks, hosts=hosts, **accepted)
    ranks = start.config.parallel.world_size
    if start.is_finished:
        events.append(folder, "job_ended", job=job, code=0, why="the run was finished before")
        lock.release(folder)
    elif former and former.parallel.world_size != ranks:
        events.append(folder, "ranks_changed", before=former.parallel.world_size, now=ranks)
    return start


def check_job(config: RunConfig, nodes: int | None, tasks_per_node: int, accept_changes: bool) -> tuple[Start, int]:
    """Refuse on the login node what a job would refuse, and work out its nodes where they are not given.

    Args:
        config, accept_changes: as for `begin_job`.
        nodes: of the job; None for as many as the run's ranks need.
        tasks_per_node: GPUs of a node.

    Returns:
        What the job would start, and the number of nodes.

    Raises:
        ConfigError, ParallelismError: the job would not start.
    """
    config = in_its_folder(config)
    if holder := lock.live_holder(config.run_folder):
        raise ConfigError(
            f"{holder} holds {config.run_folder}",
            "one job for a run folder",
            "wait for it or end it, or choose another run.folder",
        )
    former = former_config(config.run_folder)
    ranks = (former or config).parallel.world_size
    nodes = nodes or -(-ranks // tasks_per_node)
    return _judge(config, nodes * tasks_per_node, tasks_per_node, accept_changes, is_restart=False), nodes


def in_its_folder(config: RunConfig) -> RunConfig:
    """With `run.folder`, which a job needs to know before it starts: it goes on where it was, and takes no other."""
    if config.run.folder or not config.run.recipe:
        return config
    return replace(config, run=replace(config.run, folder=f"runs/{config.run.recipe}-slurm"))


def _judge(config: RunConfig, tasks: int, tasks_per_node: int, accept_changes: bool, is_restart: bool) -> Start:
    folder = config.run_folder
    former = former_config(folder)
    _check_ranks(config, former.parallel.world_size if former else tasks, tasks_per_node)
    step, notes = tracked_step(folder / CHECKPOINTS), []
    if former is not None:
        if not accept_changes:
            check_same_run(former, config, folder, "add --accept-changes")
        if step is not None and step >= config.training.steps:
            _refuse_what_is_finished(config, step, is_restart)
            return Start(config=config, is_finished=True, notes=(f"{folder} is finished: step {step}",))
    ranks = choose_ranks(config, former, tasks, tasks_per_node)
    config = with_ranks(config, ranks)
    check(config)
    check_files(config, resume=step is not None)
    if former is not None:
        notes.append(f"{folder} goes on from {'its start' if step is None else f'step {step}'}")
        if former.parallel.world_size != ranks:
            notes.append(f"elastic: {ranks} ranks, {former.parallel.world_size} before, the same global batch")
    if ranks < tasks:
        notes.append(f"{tasks - ranks} of {tasks} GPUs stay idle: no larger number of ranks keeps the global batch")
    return Start(config=config, is_finished=False, notes=tuple(notes))


def _check_ranks(config: RunConfig, ranks: int, tasks_per_node: int) -> None:
    """Check the run on so many ranks; where only their number is at fault, say for which one the recipe was made."""
    made_for = config.parallel.world_size
    try:
        check(with_ranks(config, ranks))
    except ParallelismError as error:
        check(config)
        raise ParallelismError(
            f"{ranks} tasks, the recipe is for {made_for}; {error.found}",
            error.needed,
            f"submit {made_for} tasks (--nodes={-(-made_for // tasks_per_node)}"
            + (f" and MEDX_GPUS_PER_NODE={made_for}" if made_for < tasks_per_node else "")
            + f"), or {error.do}",
        ) from error


def _refuse_what_is_finished(config: RunConfig, step: int, is_restart: bool) -> None:
    """A requeued job that finds its run finished is done; who submits one anew has mistaken something."""
    if not is_restart:
        raise ConfigError(
            f"the run in {config.run_folder} is finished: step {step} of {config.training.steps} is saved",
            "steps to do, or a folder for a new run",
            f"add training.steps={2 * step} to go on with it, or choose another run.folder",
        )
