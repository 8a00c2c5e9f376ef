"""Where all tasks meet: a key-value store in the process of rank 0, over TCP, with a limit on every wait.

Not the file system, which is itself looked at, and not a collective, which would hang on the one that is missing.
"""

import datetime
import json
import socket
import time
from collections.abc import Callable

import torch.distributed as dist

from megatron_medx.errors import ParallelismError
from megatron_medx.preflight.place import Place

CALL_S = 30.0
"""Seconds for one answer of the store: it answers in milliseconds, unless its host is in trouble."""

POLL_S = 0.05


class Meeting:
    """One connection to the store; each thread has its own, since a wait holds it."""

    def __init__(self, store: dist.Store, rank: int, size: int):
        self.store, self.rank, self.size = store, rank, size

    def post(self, phase: str, facts: dict) -> None:
        """Tell rank 0 what this rank found in a phase."""
        self.store.set(f"{phase}/{self.rank}", json.dumps(facts))
        self.store.add(f"{phase}/posted", 1)

    def doing(self, what: str) -> None:
        """Say what this rank is about to do, for the case that it never comes back from it."""
        self.store.set(f"doing/{self.rank}", what)

    def last_doing(self, rank: int) -> str:
        """What a rank was about to do; empty where it never said."""
        return self.peek(f"doing/{rank}")

    def tell(self, topic: str, word: str) -> None:
        """Rank 0's word to all, such as whether to go on after a phase."""
        self.store.set(f"word/{topic}", word)

    def word(self, topic: str, limit_s: float) -> str:
        """Wait for rank 0's word.

        Raises:
            RuntimeError: it has not come in time, or rank 0 is gone.
        """
        self.store.wait([f"word/{topic}"], datetime.timedelta(seconds=limit_s))
        return self.peek(f"word/{topic}")

    def peek(self, key: str) -> str:
        """Value of a key; empty where there is none yet."""
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def gather(self, phase: str, limit_s: float, is_enough: Callable[[dict[int, dict]], bool]) -> dict[int, dict]:
        """What all ranks found in a phase, by rank; after `limit_s` what there is.

        Args:
            phase: its name.
            limit_s: seconds from now.
            is_enough: asked again and again about what has come; true ends the wait.
        """
        found: dict[int, dict] = {}
        deadline = time.monotonic() + limit_s
        while len(found) < self.size and time.monotonic() < deadline and not is_enough(found):
            if self.store.add(f"{phase}/posted", 0) == len(found):
                time.sleep(POLL_S)
                continue
            for rank in set(range(self.size)) - set(found):
                if text := self.peek(f"{phase}/{rank}"):
                    found[rank] = json.loads(text)
        return found


def open_store(place: Place) -> tuple[dist.Store, int]:
    """Start the store in this process, which is rank 0; returns it, and its port.

    Raises:
        ParallelismError: the port is taken.
    """
    limit = datetime.timedelta(seconds=CALL_S)
    try:
        server = dist.TCPStore("127.0.0.1", place.port, is_master=True, wait_for_workers=False, timeout=limit)
    except RuntimeError as error:
        raise ParallelismError(
            f"port {place.port} of {place.host} cannot be used: {str(error).splitlines()[0]}",
            "a free port for the preflight: MASTER_PORT - 10000, or 10000 + job id modulo 10000",
            "export MASTER_PORT with another number before srun",
        ) from error
    return dist.PrefixStore(place.attempt, server), server.port


def connect(place: Place, address: str, port: int, patience_s: float) -> dist.Store:
    """Connect to rank 0's store, as soon as it is there.

    Raises:
        ParallelismError: it is not after `patience_s` seconds.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection((address, port), timeout=5.0).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ParallelismError(
                    f"{place.host} does not reach rank 0 at {address}:{port} within {patience_s:g} s: {error}",
                    "a network between all hosts, and a host of rank 0 that answers",
                    f"if only {place.host} says so, leave it out; if all hosts do, leave out {address} "
                    "(sbatch --exclude=HOST), or set MASTER_ADDR to a name that every host can look up",
                ) from error
        time.sleep(0.2)
    limit = datetime.timedelta(seconds=CALL_S)
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=limit)
    return dist.PrefixStore(place.attempt, store)
