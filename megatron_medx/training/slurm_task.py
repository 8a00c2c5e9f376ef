"""One task of `srun medx train ...`: it becomes a rank, when the first task has prepared the folder for all.

What the first task decides, the others read from small files in the folder of logs, each marked with the attempt that
it is meant for. A precision gate comes before: there every task starts a rank of each trial as a process of its own and
waits for it, since a process can be a rank of Megatron only once.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_medx.config.checkpoint_folders import RUN_FILE
from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import CheckpointError, MedxError, ParallelismError
from megatron_medx.run_folder import lock
from megatron_medx.run_folder.names import GATE, LOGS
from megatron_medx.training.interruption import LAUNCHER
from megatron_medx.training.local_ranks import PORTS, Ending, rank_environment
from megatron_medx.training.precision_gate import end_without_a_verdict, gate_is_due, hold_gate, precisions
from megatron_medx.training.prepare_run import announce, choose_folder, holds_checkpoint, prepare_folder

PREPARE_PATIENCE_S = 3600.0
"""Seconds that the tasks of srun wait for the first one: 66 GB of weights, read and written at 40 MB/s."""

PREPARED_FILE, REFUSED_FILE, GATE_MARK = "prepared", "refused", "gate"
"""In the folder of logs: the attempt that the run folder is prepared for, or not, and what the first task decided; and
whether a precision gate is held.

Several files, because a job may be refused for another one's sake, whose tasks are about to read theirs.
"""

NEW, RESUMED, REFUSED, HELD, NOT_DUE = "new", "resumed", "refused", "held", "not_due"
"""What it may have decided."""


def run_task(config: RunConfig, resume: bool, auto_resume: bool) -> int:
    """Be the rank that srun started; the first task prepares the folder for all.

    A refusal is the same for all tasks, so the first one speaks, and the others end as it does.

    Args:
        config, resume, auto_resume: as of `launch`.

    Returns:
        The exit code of this task.

    Raises:
        ConfigError, CheckpointError, ParallelismError: the run cannot start; from the first task alone.
    """
    from megatron_medx.training.worker import USER_ERROR, run_rank

    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    config.run.folder = str(config.run_folder)  # one name for all tasks, which cannot agree on a free number
    folder = config.run_folder
    try:
        _check_task(config, size)
        if config.precision.gate_steps:
            code = _lead_gate(config, resume, auto_resume) if rank == 0 else _follow_gate(config)
            if code:
                return code
        if rank == 0:
            resume = _prepare_for_all(config, resume, auto_resume)
    except MedxError:
        if rank == 0:
            raise
        return USER_ERROR
    if rank:
        decided = wait_until_told(_marks(folder), _attempt())
        if decided == REFUSED:
            return USER_ERROR
        resume, config = decided == RESUMED, read_run_yaml(folder / RUN_FILE)
    os.environ.update(_place(_port()))
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
    """Prepare a run folder as the first task, and tell the others; whether the run is resumed.

    The lock is the job's, so it stays when this step of the job ends.
    """
    folder = config.run_folder
    with _refusing_for_all(folder):
        lock.acquire(folder)
        resume = resume or (auto_resume and holds_checkpoint(config))
        prepare_folder(config, resume, sys.argv, re_enter=auto_resume)
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or socket.gethostname()
    announce(config, folder, resume, [nodes])
    _tell(folder, PREPARED_FILE, RESUMED if resume else NEW)
    return resume


def _lead_gate(config: RunConfig, resume: bool, auto_resume: bool) -> int:
    """Hold the precision gate as the first task, where it is due; 0 where the run may begin, else the exit code."""
    folder = config.run_folder
    with _refusing_for_all(folder):
        lock.acquire(folder)
        choose_folder(config, resume or auto_resume)  # which refuses another run's
        is_due = gate_is_due(config, resume, auto_resume)
        _tell(folder, GATE_MARK, HELD if is_due else NOT_DUE)
        ending = hold_gate(config, _lead_trial) if is_due else Ending(0)
    return end_without_a_verdict(ending, folder) if ending.code else 0


def _lead_trial(trial: RunConfig) -> Ending:
    _prepare_for_all(trial, resume=False, auto_resume=False)
    code = _run_trial_rank(trial.run_folder)
    return Ending(code, rank_code=code, why=f"its first rank ended with code {code}" if code else "")


def _follow_gate(config: RunConfig) -> int:
    """Take part in the precision gate as another task; 0 where the run may begin, else the exit code."""
    from megatron_medx.training.worker import USER_ERROR

    folder = config.run_folder
    decided = wait_until_told([folder / LOGS / GATE_MARK, folder / LOGS / REFUSED_FILE], _attempt())
    if decided == REFUSED:
        return USER_ERROR
    for name in precisions(config) if decided == HELD else ():
        trial = folder / GATE / name
        if wait_until_told([*_marks(trial), folder / LOGS / REFUSED_FILE], _attempt()) == REFUSED:
            return USER_ERROR
        if code := _run_trial_rank(trial):
            return code
    return 0


def _run_trial_rank(folder: Path) -> int:
    """Start this task's rank of a trial and wait for it; its exit code, from 128 on where a signal ended it.

    It has the signals of the job step by itself, and dies with this process.
    """
    number = sum(folder.name.encode())  # another for each trial, since the port of the one before may still be in use
    port = PORTS[(_port() - PORTS.start + number) % len(PORTS)]
    environment = {**os.environ, **_place(port), LAUNCHER: str(os.getpid())}
    process = subprocess.Popen([sys.executable, "-m", "megatron_medx.training.worker", str(folder)], env=environment)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _port() -> int:
    return int(os.environ.get("MASTER_PORT", 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000))


def _place(port: int) -> dict[str, str]:
    """What a rank of this task reads to find the others."""
    rank, size, local_rank = (int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS", "LOCALID"))
    return rank_environment(rank, local_rank, size, os.environ["MASTER_ADDR"], port)


@contextlib.contextmanager
def _refusing_for_all(folder: Path) -> Iterator[None]:
    """Tell the other tasks of what a user can mend; the error goes on."""
    try:
        yield
    except MedxError:
        _tell(folder, REFUSED_FILE, REFUSED)
        raise


def _tell(folder: Path, file: str, decided: str) -> None:
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    (folder / LOGS / file).write_text(f"{_attempt()} {decided}")


def _marks(folder: Path) -> list[Path]:
    """Where the first task says whether a run folder is prepared."""
    return [folder / LOGS / name for name in (PREPARED_FILE, REFUSED_FILE)]


def _attempt() -> str:
    """What all tasks of one srun share and no other has: a job may hold several, and may be requeued."""
    return ".".join(os.environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))


def wait_until_told(marks: Sequence[Path], attempt: str, patience_s: float = PREPARE_PATIENCE_S) -> str:
    """What the first task decided in this very attempt, as the first of these files that speaks of it says.

    Raises:
        CheckpointError: none has after `patience_s` seconds.
    """
    deadline = time.monotonic() + patience_s
    while True:
        for mark in marks:
            with contextlib.suppress(FileNotFoundError):  # not there yet, or removed as one of an earlier attempt
                said = mark.read_text().split()
                if len(said) == 2 and said[0] == attempt:
                    return said[1]
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{marks[0]} has not appeared for {patience_s:g} s",
                "a run folder that the first task prepares and every task sees",
                "read what the first task said; put run.folder on a shared disk; convert a large Hugging Face "
                "directory before with `medx convert to-megatron`",
            )
        time.sleep(min(1.0, patience_s))
