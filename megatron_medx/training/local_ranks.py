"""The ranks of a run on this machine: started, told of signals, waited for, ended.

torch is not imported here. Each rank is a process of `worker.py`.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.errors import ParallelismError
from megatron_medx.run_folder.events import AGAIN, INTERRUPTED
from megatron_medx.run_folder.names import ERROR_FILE, LOGS, rank_log
from megatron_medx.terminal import complain, say
from megatron_medx.training.interruption import LAUNCHER, LOST_PEER, SIGNALS

PORTS = range(20_000, 32_768)
"""Below those that Linux gives to outgoing connections: ranks need seconds to come and listen on the chosen one."""

GRACE_S = 10.0
"""Seconds that the other ranks get to end by themselves after one has ended before its time."""

POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Ending:
    """How all ranks together have ended.

    Attributes:
        code: of the launch: 0, INTERRUPTED, AGAIN, 2 where the user can mend it, 1 for a defect.
        rank: the one to blame, where one is.
        rank_code: its own code, negative for a signal.
        why: one line about it.
        silent: ranks that had to be killed, for they did not end by themselves.
    """

    code: int
    rank: int | None = None
    rank_code: int | None = None
    why: str = ""
    silent: tuple[int, ...] = ()


@contextlib.contextmanager
def receiving() -> Iterator[deque[int]]:
    """Collect SIGNALS instead of dying of them; by handlers, for a mask would not hold for threads of libraries."""
    received: deque[int] = deque()
    former = {number: signal.signal(number, lambda number, _: received.append(number)) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run_ranks(folder: Path, world_size: int, resume: bool, received: deque[int]) -> Ending:
    """Start the ranks of a prepared run, wait for them and end what is left of them.

    Args:
        folder: of the run.
        world_size: number of ranks.
        resume: go on from the checkpoint that the tracker names.
        received: signals that this process gets meanwhile. They are passed on, and ranks save and leave; a second
            SIGTERM ends everything at once.

    Raises:
        SystemExit: on a second SIGTERM.
    """
    address, port = "127.0.0.1", free_port()
    words = [sys.executable, "-m", "megatron_medx.training.worker", str(folder), *(["--resume"] if resume else [])]
    inherited = {**os.environ, LAUNCHER: str(os.getpid())}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited: none dies of one before it can listen
    processes = [
        subprocess.Popen(
            words, env=inherited | rank_environment(rank, rank, world_size, address, port), process_group=0
        )
        for rank in range(world_size)
    ]
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        return judge(_wait(processes, received), folder)
    finally:
        for process in processes:  # with what it started: Megatron's helper for saving outlives a rank that was killed
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait(processes: Sequence[subprocess.Popen], received: deque[int]) -> list[int | None]:
    """Exit codes of the ranks; None of those that have not ended GRACE_S after one ended before its time."""
    deadline, has_passed_on = None, False
    while True:
        codes = [process.poll() for process in processes]
        if all(code is not None for code in codes) or (deadline and time.monotonic() > deadline):
            return codes
        if deadline is None and any(codes):
            deadline = time.monotonic() + GRACE_S
        if not received:
            time.sleep(POLL_S)
            continue
        number = received.popleft()
        if has_passed_on and number == signal.SIGTERM:
            sys.exit(128 + signal.SIGTERM)
        has_passed_on |= number == signal.SIGTERM
        say(f"{signal.Signals(number).name}: the ranks save and leave after this step")
        for process, code in zip(processes, codes, strict=True):
            with contextlib.suppress(ProcessLookupError):
                if code is None:
                    os.kill(process.pid, number)


def judge(codes: Sequence[int | None], folder: Path) -> Ending:
    """What the exit codes of all ranks mean together; of a failure also says where to look.

    Ranks agree before they leave with INTERRUPTED, and one that hung is asked for no opinion. So either code counts
    whatever became of the others afterwards.

    Args:
        codes: by rank; None of one that did not end.
        folder: of the run.
    """
    silent = tuple(rank for rank, code in enumerate(codes) if code is None)
    failed = [rank for rank, code in enumerate(codes) if code]
    if not failed:
        return Ending(0, silent=silent)
    for code in (AGAIN, INTERRUPTED):
        if code in codes:
            return Ending(code, silent=silent)
    if 2 in codes:
        error = folder / LOGS / ERROR_FILE
        said = error.read_text(errors="replace").strip().splitlines() if error.exists() else []
        return Ending(2, codes.index(2), 2, said[0].removeprefix("found:").strip() if said else "", silent)
    logs = {rank: folder / LOGS / rank_log(rank) for rank in failed}
    # A rank that lost its peer fails as well: to blame is one that was killed, else one that says something else.
    rank = min(failed, key=lambda rank: (codes[rank] > 0, _lost_its_peer(logs[rank]), rank))
    complain(f"rank {rank} ended with code {codes[rank]}; the end of {logs[rank]}:")
    lines = logs[rank].read_text(errors="replace").splitlines()[-15:] if logs[rank].exists() else []
    for line in lines:
        complain(f"    {line}")
    return Ending(1, rank, codes[rank], reason(codes[rank], lines), silent)


def reason(code: int, log: Sequence[str]) -> str:
    """Why a rank ended, in one line: the signal that killed it, else the last line of its log.

    Args:
        code: its exit code, negative for a signal.
        log: lines of its log.
    """
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return next((line.strip() for line in reversed(log) if line.strip()), "its log is empty")


def _lost_its_peer(log: Path) -> bool:
    return log.exists() and LOST_PEER in log.read_text(errors="replace")[-2000:]


def rank_environment(rank: int, local_rank: int, world_size: int, address: str, port: int) -> dict[str, str]:
    """What torch.distributed and Megatron read to find their place."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """MASTER_PORT where it is set and free, else any free one of PORTS."""
    wanted = os.environ.get("MASTER_PORT")
    for port in [wanted] if wanted else random.sample(PORTS, 20):
        try:
            with socket.socket() as probe:
                probe.bind(("", int(port)))
            return int(port)
        except (OSError, ValueError, OverflowError) as error:
            trouble = error
    raise ParallelismError(
        f"MASTER_PORT={port} cannot be used: {trouble}",
        "a free port on which the ranks meet",
        "unset MASTER_PORT (a free one is chosen), or set another",
    ) from trouble
