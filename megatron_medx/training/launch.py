"""From a checked configuration to running ranks on this machine; a task of `srun` is slurm_task.py's.

torch is not imported here. Each rank is a process of `worker.py`.
"""

import contextlib
import functools
import os
import socket
import sys
from pathlib import Path

from megatron_medx.config.checkpoint_folders import RUN_FILE
from megatron_medx.config.run import RunConfig
from megatron_medx.run_folder import events, lock
from megatron_medx.run_folder.events import AGAIN, INTERRUPTED
from megatron_medx.run_folder.names import LOGS
from megatron_medx.run_folder.progress import failures_without_progress, last_step
from megatron_medx.run_folder.same_run import check_same_run, former_config
from megatron_medx.terminal import complain, say
from megatron_medx.training.local_ranks import Ending, receiving, run_ranks
from megatron_medx.training.precision_gate import end_without_a_verdict, gate_is_due, hold_gate
from megatron_medx.training.prepare_run import announce, choose_folder, holds_checkpoint, prepare_folder
from megatron_medx.training.slurm_task import run_task

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
        return run_task(config, resume, auto_resume)
    folder = choose_folder(config, resume or auto_resume)
    config.run.folder = str(folder)
    lock.acquire(folder)
    try:
        if auto_resume and not holds_checkpoint(config):  # under Slurm `medx job begin` has judged it
            if (former := former_config(folder)) is not None:
                check_same_run(former, config, folder, f"remove {folder / RUN_FILE}: nothing is saved there")
        if gate_is_due(config, resume, auto_resume):
            ending = hold_gate(config, functools.partial(_launch_once, resume=False, auto_resume=False))
            if ending.code:
                return end_without_a_verdict(ending, folder)
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
        announce(config, folder, resume, [socket.gethostname()])
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
