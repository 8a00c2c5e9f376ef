"""Tasks of a preflight on this machine: forked, so that none imports torch again, each with Slurm's environment."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist  # noqa: F401  imported once here, for all tasks

from megatron_medx.preflight import lead, run  # noqa: F401

TWO_BY_TWO = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}


def no_change() -> None:
    """Leave a task as it is."""


class Task(multiprocessing.get_context("fork").Process):
    """One task of srun, whose screen is a file."""

    def __init__(self, folder: Path, environ: dict[str, str], screen: Path, patience_s: float, change: Callable):
        super().__init__(daemon=True)
        self.folder, self.environ, self.screen, self.patience_s, self.change = (
            folder,
            environ,
            screen,
            patience_s,
            change,
        )

    def run(self) -> None:
        """Be `medx job preflight FOLDER`."""
        file = os.open(self.screen, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        torch.set_num_threads(1)
        self.change()
        sys.exit(run.preflight(self.folder, self.patience_s, self.environ))


def run_tasks(
    folder: Path,
    ranks: Iterable[int] = range(4),
    patience_s: float = 20.0,
    changes: dict[int, Callable] | None = None,
    limit_s: float = 60.0,
) -> tuple[dict[int, int | None], str, float]:
    """Run some tasks of two hosts with two each.

    Args:
        folder: of the run.
        ranks: that are started at all.
        patience_s: as for `preflight`.
        changes: rank -> what is done to that task before it starts.
        limit_s: seconds for all of them.

    Returns:
        Rank -> exit code, None of one that was still running; what rank 0 showed; seconds.
    """
    start, tasks, changes = time.monotonic(), {}, changes or {}
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    for rank in ranks:
        place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2), "SLURMD_NODENAME": f"node{rank // 2 + 1}"}
        environ = {**TWO_BY_TWO, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port + 10_000)}
        screen = folder.parent / f"{folder.name}_{rank}.txt"
        tasks[rank] = Task(folder, environ, screen, patience_s, changes.get(rank, no_change))
        tasks[rank].start()
    try:
        for task in tasks.values():
            task.join(max(0.0, start + limit_s - time.monotonic()))
        codes = {rank: task.exitcode for rank, task in tasks.items()}
    finally:
        for task in tasks.values():
            with contextlib.suppress(ProcessLookupError):
                task.kill()
            task.join()
    first = folder.parent / f"{folder.name}_0.txt"
    return codes, first.read_text() if first.exists() else "", time.monotonic() - start
