"""How a rank ends before the last step, and is right to: on a signal, or to be started again.

Slurm's warning ahead of the time limit (SIGUSR1) and preemption (SIGTERM) reach every process of a job step: ranks, and
also what they started to save, to export and to read rows. In all of these both signals are blocked, so that nobody
dies of them; one thread of each rank takes them. After a step the ranks agree whether one has come to any of them, save
through Megatron's own path for exit signals (hooks.py) and leave together with code INTERRUPTED.

torch is not imported at module level: signals are blocked before anything that starts threads.
"""

import contextlib
import ctypes
import datetime
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_medx.errors import MedxError
from megatron_medx.run_folder import events
from megatron_medx.run_folder.names import LOGS
from megatron_medx.run_folder.progress import last_step

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What ends a run before its time, with everything saved."""

LEAVE_PATIENCE_S = 20.0
"""Seconds that an interrupted run waits, when it is saved, for the checksums: Slurm's KillWait is 30 s."""

LAUNCHER = "MEDX_LAUNCHER"
"""Environment variable with the pid of the launcher: its ranks die with it, for its lock on the folder does."""

_PR_SET_PDEATHSIG = 1
"""Of Linux' prctl(2): the signal that a process gets when its parent ends."""

LOST_PEER = "by peer"
"""In what gloo says on a rank whose peer is gone: "Connection closed by peer"."""

FAILURE_MARK = "failed"
"""In the folder of logs: a rank of this launch has told of its failure."""


class StartAgain(Exception):
    """Raised on every rank at the same point: the run goes on from a checkpoint, in new processes (code AGAIN).

    Args:
        why: one line for the screen of the reporting rank.
    """


def block_signals() -> None:
    """Keep SIGNALS pending in this thread, and in all threads and processes that it starts from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class SignalListener:
    """Takes this process's SIGNALS, which are blocked, in a thread of its own; the first one counts."""

    def __init__(self):
        self.number, self.time_s = 0, 0.0
        """Signal, 0 where none has come, and when it came (seconds since 1970)."""

    def start(self) -> None:
        """Block the signals and begin to listen."""
        block_signals()
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def _listen(self) -> None:
        while True:
            number = signal.sigwait(SIGNALS)
            if not self.number:
                self.time_s, self.number = time.time(), int(number)


class Interruption:
    """Whether the run leaves before its last step: agreed by all ranks, told by the reporting one.

    Args:
        listener: of this process.
        folder: of the run.
        num_steps: after the last one nothing is interrupted: the run is finished.
        is_reporter: whether this rank writes events.
    """

    def __init__(self, listener: SignalListener, folder: Path, num_steps: int, is_reporter: bool):
        self._listener, self._folder = listener, folder
        self._num_steps, self._is_reporter = num_steps, is_reporter
        self.step = 0
        """Steps done."""
        self.cause: str | None = None
        """Name of the signal, or of Megatron's argument, that the run leaves for; None while it goes on."""

    @property
    def by_signal(self) -> bool:
        """Whether it is a signal that the run leaves for."""
        return self.cause is not None and self.cause.startswith("SIG")

    def is_due(self) -> bool:
        """Whether a signal has come to any rank, the same answer on all. Collective over all ranks."""
        import torch
        import torch.distributed as dist

        if self.step >= self._num_steps:
            return False
        device = torch.cuda.current_device() if dist.get_backend() == "nccl" else "cpu"
        received = torch.tensor(self._listener.number, dtype=torch.int32, device=device)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        if not received.item():
            return False
        ranks: list = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, (self._listener.number, self._listener.time_s, socket.gethostname()))
        rank, number, host = first_signal(ranks)
        self.cause = signal.Signals(number).name
        self._tell("signal", signal=self.cause, rank=rank, host=host, step=self.step)
        return True

    def tell_at_once(self) -> None:
        """Record that everything is saved for the run to go on: who leaves may be killed any moment."""
        if self.cause is not None:
            self._tell("interrupted", step=self.step, signal=self.cause)

    def end(self) -> int:
        """Record that the run is finished, or leave this process; the exit code. Collective where a signal ends it.

        Under `srun --kill-on-bad-exit` the first rank that leaves with a code ends all others. So they meet, and leave
        in the same moment, without the seconds that Python takes to clean up.
        """
        if self.by_signal:
            import torch.distributed as dist

            dist.barrier()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(events.INTERRUPTED)
        if self.cause is None:
            self._tell("finished", step=self._num_steps)
        return 0

    def _tell(self, event: str, **facts: object) -> None:
        if self._is_reporter:
            events.append(self._folder, event, **facts)


class Hurried:
    """What is finished beside training, but waited for no longer than LEAVE_PATIENCE_S; the next launch goes on.

    Args:
        finisher: with a generator `finish` (exports.py).
    """

    def __init__(self, finisher: Any):
        self._finisher = finisher

    def finish(self) -> Iterator[None]:
        """Go on until nothing is under way, or time is up."""
        deadline_s = time.monotonic() + LEAVE_PATIENCE_S
        for _ in self._finisher.finish():
            if time.monotonic() > deadline_s:
                return
            yield


def first_signal(ranks: list[tuple[int, float, str]]) -> tuple[int, int, str]:
    """Rank, number and host of the signal that came first.

    Args:
        ranks: of each rank the signal's number (0 for none), when it came (s) and the host.
    """
    rank = min((rank for rank, (number, *_) in enumerate(ranks) if number), key=lambda rank: (ranks[rank][1], rank))
    number, _, host = ranks[rank]
    return rank, number, host


def last_launch(folder: Path) -> tuple[float, int]:
    """When the run was launched last (seconds since 1970), and the steps that it had done then."""
    for event in reversed(events.read(folder)):
        if event["event"] == "launched":
            return datetime.datetime.fromisoformat(event["time"]).timestamp(), event.get("resumed_from") or 0
    return time.time(), 0  # a rank without a launcher, as tests start one


def first_step_teller(folder: Path, launched_s: float) -> Callable[[int], None]:
    """A function that records the first step of a launch, and how long after `launched_s` it was done."""
    return lambda step: events.append(folder, "first_step", step=step, start_s=round(time.time() - launched_s, 3))


def tell_of_failure(error: BaseException, folder: Path) -> None:
    """Record under srun why this rank fails, unless another one has; elsewhere the launcher does so.

    Args:
        error: one of errors.py ends the rank with code 2, all others with code 1.
        folder: of the run.
    """
    if "SLURM_PROCID" not in os.environ:
        return
    with contextlib.suppress(OSError), open(folder / LOGS / FAILURE_MARK, "x"):
        lines = (error.found if isinstance(error, MedxError) else str(error)).strip().splitlines() or [""]
        why = lines[0] if isinstance(error, MedxError) else f"{type(error).__name__}: {lines[0]}"
        rank = None if LOST_PEER in str(error) else int(os.environ["RANK"])  # who noticed is not to blame
        code = 2 if isinstance(error, MedxError) else 1
        events.append(folder, "failed", step=last_step(folder), code=code, rank=rank, why=why)


def die_with(parent: int) -> None:
    """Let the kernel kill this process when the one that started it dies.

    Args:
        parent: its pid, as the parent itself said: by now it may have died, and another process taken its place here.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
