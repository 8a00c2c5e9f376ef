"""From a checked configuration to running ranks, on this machine or as one task of `srun`.

torch is not imported here. Each rank is a process of `worker.py`.
"""

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

from megatron_medx.config.checkpoint_folders import CHECKPOINTS, RUN_FILE
from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import CheckpointError, MedxError, ParallelismError
from megatron_medx.run_folder import events, lock
from megatron_medx.run_folder.events import AGAIN, INTERRUPTED
from megatron_medx.run_folder.integrity import tracked_step
from megatron_medx.run_folder.names import LOGS
from megatron_medx.run_folder.progress import failures_without_progress, last_step
from megatron_medx.run_folder.same_run import check_same_run, former_config
from megatron_medx.terminal import complain, say
from megatron_medx.training.local_ranks import Ending, rank_environment, receiving, run_ranks
from megatron_medx.training.prepare_run import choose_folder, holds_checkpoint, prepare_folder

PREPARE_PATIENCE_S = 3600.0
"""Seconds that the tasks of srun wait for the first one: 66 GB of weights, read and written at 40 MB/s."""

PREPARED_FILE, REFUSED_FILE = "prepared", "refused"
"""In the folder of logs: the attempt that the run folder is prepared for, or not, and what the first task decided.

Two files, because a job may be refused for another one's sake, whose tasks are about to read theirs.
"""

NEW, RESUMED, REFUSED = "new", "resumed", "refused"
"""What it may have decided."""

GAVE_UP = 1
"""Exit code of a launch that was started again as often as it may be."""


def launch(config: RunConfig, resume: bool = False, auto_resume: bool = False) -> int:
    """Run `config.parallel.world_size` ranks and wait for them.

    Ranks that ask for it (code AGAIN: a step hung, or the run was rolled back) are started again from the newest
    checkpoint, unless `survival.max_failures` launches in succession hung without a new step.

    Args:
        config: checked; `run.folder` may be empty.
        resume: continue the run in its folder from the newest checkpoint; there must be one.
        auto_resume: the same, but where the run has no checkpoint yet it begins, in the folder that it has.

    Returns:
        0, or 2 where the user can mend it, INTERRUPTED where the run was saved on a signal and can go on, AGAIN from a
        task of srun whose job decides what to do, or 1 for a defect.

    Raises:
        ConfigError, CheckpointError, ParallelismError: the run cannot start.
    """
    if "SLURM_PROCID" in os.environ and "SLURM_NTASKS" in os.environ:
        return _launch_slurm_task(config, resume, auto_resume)
    folder = choose_folder(config, resume or auto_resume)
    config.run.folder = str(folder)
    lock.acquire(folder)
    try:
        if auto_resume and not holds_checkpoint(config):  # under Slurm `medx job begin` has judged it
            if (former := former_config(folder)) is not None:
                check_same_run(former, config, folder, f"remove {folder / RUN_FILE}: nothing is saved there")
        ending = _launch_once(config, resume, auto_resume)
        while ending.code == AGAIN:
            failures = failures_without_progress(events.read(folder))
            if failures >= config.survival.max_failures:
                return _give_up(folder, failures)
            _say_again(ending)
            ending = _launch_once(config, resume=False, auto_resume=True)
        return _conclude(ending, folder)
    finally:
        lock.release(folder)
        with contextlib.suppress(OSError):  # the lock may have made it: a refused run leaves nothing behind
            folder.rmdir()


def _launch_once(config: RunConfig, resume: bool, auto_resume: bool) -> Ending:
    """Prepare the folder, then run the ranks in it; a signal from then on is for them."""
    resume = resume or (auto_resume and holds_checkpoint(config))
    folder = prepare_folder(config, resume, sys.argv, re_enter=auto_resume)
    with receiving() as received:
        _announce(config, folder, resume, [socket.gethostname()])
        return run_ranks(folder, config.parallel.world_size, resume, received)


def _say_again(ending: Ending) -> None:
    named = ", ".join(map(str, ending.silent))
    say("starting the ranks again" + (f"; rank {named} did not end by itself" if named else ""))


def _give_up(folder: Path, failures: int) -> int:
    step = last_step(folder)
    events.append(folder, "gave_up", step=step, failures=failures)
    complain(
        f"gave up: {failures} launches in succession hung, the last after step {step}, without a new step between "
        f"them; where they stood: {folder / LOGS}/stacks_rank_<n>.txt. Then: {_go_on(folder)}"
    )
    return GAVE_UP


def _conclude(ending: Ending, folder: Path) -> int:
    """Record a failure, or say how an interrupted run goes on; the exit code."""
    if ending.code == INTERRUPTED:
        say(f"interrupted, saved; to go on: {_go_on(folder)}")
    elif ending.code:
        facts = {"code": ending.rank_code, "rank": ending.rank, "why": ending.why}
        events.append(folder, "failed", step=last_step(folder), **facts)
    return ending.code


def _go_on(folder: Path) -> str:
    return f"medx train {folder / RUN_FILE} --auto-resume"


def _launch_slurm_task(config: RunConfig, resume: bool, auto_resume: bool) -> int:
    """Be the rank that srun started; the first task prepares the folder for all.

    A refusal is the same for all tasks, so the first one speaks, and the others end as it does.
    """
    from megatron_medx.training.worker import USER_ERROR, run_rank

    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    config.run.folder = str(config.run_folder)  # one name for all tasks, which cannot agree on a free number
    folder = config.run_folder
    try:
        _check_task(config, size)
        if rank == 0:
            resume = _prepare_for_all(config, resume, auto_resume)
    except MedxError:
        if rank == 0:
            raise
        return USER_ERROR
    if rank:
        decided = wait_until_prepared(folder, _slurm_attempt())
        if decided == REFUSED:
            return USER_ERROR
        resume, config = decided == RESUMED, read_run_yaml(folder / RUN_FILE)
    local_rank = int(os.environ["SLURM_LOCALID"])
    port = int(os.environ.get("MASTER_PORT", 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000))
    os.environ.update(rank_environment(rank, local_rank, size, os.environ["MASTER_ADDR"], port))
    return run_rank(config, folder, resume)


def _check_task(config: RunConfig, size: int) -> None:
    """Refuse what srun did not give.

    Raises:
        ParallelismError: another number of tasks, or no meeting place.
    """
    if size != config.parallel.world_size:
        raise ParallelismError(
            f"srun started {size} tasks, the run is for {config.parallel.world_size} ranks",
            "one task per rank",
            f"add parallel.world_size={size}, or change --ntasks of the allocation",
        )
    if "MASTER_ADDR" not in os.environ:
        raise ParallelismError(
            "a Slurm task without MASTER_ADDR",
            "the host on which the ranks meet, the same for every task",
            "start with sbatch slurm/pretrain.sh RECIPE, or export MASTER_ADDR before srun",
        )


def _prepare_for_all(config: RunConfig, resume: bool, auto_resume: bool) -> bool:
    """Prepare the run folder as the first task, and tell the others; whether the run is resumed.

    The lock is the job's, so it stays when this step of the job ends.
    """
    folder = config.run_folder
    logs = folder / LOGS
    try:
        lock.acquire(folder)
        resume = resume or (auto_resume and holds_checkpoint(config))
        prepare_folder(config, resume, sys.argv, re_enter=auto_resume)
    except MedxError:
        logs.mkdir(parents=True, exist_ok=True)
        (logs / REFUSED_FILE).write_text(f"{_slurm_attempt()} {REFUSED}")
        raise
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or socket.gethostname()
    _announce(config, folder, resume, [nodes])
    (logs / PREPARED_FILE).write_text(f"{_slurm_attempt()} {RESUMED if resume else NEW}")
    return resume


def _slurm_attempt() -> str:
    """What all tasks of one srun share and no other has: a job may hold several, and may be requeued."""
    return ".".join(os.environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))


def wait_until_prepared(folder: Path, attempt: str, patience_s: float = PREPARE_PATIENCE_S) -> str:
    """What the first task decided about the run folder in this very attempt: NEW, RESUMED or REFUSED.

    Raises:
        CheckpointError: it has not after `patience_s` seconds.
    """
    marks = [folder / LOGS / name for name in (PREPARED_FILE, REFUSED_FILE)]
    mark, deadline = marks[0], time.monotonic() + patience_s
    while True:
        for said in (mark.read_text().split() for mark in marks if mark.is_file()):
            if len(said) == 2 and said[0] == attempt:
                return said[1]
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{mark} has not appeared for {patience_s:g} s",
                "a run folder that the first task prepares and every task sees",
                "read what the first task said; put run.folder on a shared disk; convert a large Hugging Face "
                "directory before with `medx convert to-megatron`",
            )
        time.sleep(min(1.0, patience_s))


def _announce(config: RunConfig, folder: Path, resume: bool, hosts: list[str]) -> None:
    say(f"run folder  {folder}{' (resumed)' if resume else ''}")
    resumed_from = tracked_step(folder / CHECKPOINTS) if resume else None
    events.append(folder, "launched", ranks=config.parallel.world_size, hosts=hosts, resumed_from=resumed_from)
