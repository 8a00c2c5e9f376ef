"""Each start of a run, as the logs of its ranks tell it: when, on how many ranks, from which step, what was repeated.

Every rank begins its part of a log with `=== started`; rank 0 prints Megatron's arguments and which checkpoint it
loaded, the last rank a line a step. This is the only module that takes a run's story from text meant for people; a file
of events would be read here instead.
"""

import contextlib
import itertools
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_medx.run_folder.names import LOGS

_STARTED = re.compile(rb"=== started (\S+) ===\n")  # perhaps behind half a line that a killed process left
_WORLD_SIZE = re.compile(rb"^\s*world_size \.+ (\d+)\s*$", re.MULTILINE)
_LOADED = re.compile(rb"successfully loaded checkpoint from .* at iteration (\d+)")
_STEP, _NUMBER = b"] iteration ", re.compile(rb"\s*(\d+)/")


def launches(folder: Path) -> list[dict]:
    """One entry a start, oldest first; empty where no rank has started, or an old log does not tell.

    Keys: `started`, local time of the host of rank 0, as in the log; `num_ranks`; `resumed_from`, the step, None where
    nothing of this run was loaded; `last_step` that was logged; `steps_repeated`, those that the start before had
    already made. What the logs do not tell is None.
    """
    entries = _of_rank_0(folder / LOGS / "rank_0.log")
    logs: dict[int, list[int | None]] = {}
    for number, entry in enumerate(entries):
        if entry["num_ranks"]:
            reporter = entry["num_ranks"] - 1
            if reporter not in logs:
                logs[reporter] = _last_steps(folder / LOGS / f"rank_{reporter}.log")
            # a rank took part in the starts of larger grids than its number alone
            part = sum((former["num_ranks"] or 0) > reporter for former in entries[:number])
            if part < len(logs[reporter]):
                entry["last_step"] = logs[reporter][part]
        former = entries[number - 1]["last_step"] if number else None
        if former is not None and entry["resumed_from"] is not None:
            entry["steps_repeated"] = max(0, former - entry["resumed_from"])
    return entries


def _of_rank_0(log: Path) -> list[dict]:
    entries = []
    with _mapped(log) as text:
        parts = _parts(text)
        for number, (start, end) in enumerate(parts):
            loaded = _LOADED.search(text, start, end) if number else None  # the first start loads another run's
            ranks = _WORLD_SIZE.search(text, start, end)
            entries.append(
                {
                    "started": _STARTED.match(text, start)[1].decode(errors="replace"),
                    "num_ranks": int(ranks[1]) if ranks else None,
                    "resumed_from": int(loaded[1]) if loaded else None,
                    "last_step": None,
                    "steps_repeated": None,
                }
            )
    return entries


def _last_steps(log: Path) -> list[int | None]:
    """The last step that each part of a log tells of."""
    steps = []
    with _mapped(log) as text:
        for start, end in _parts(text):
            at = text.rfind(_STEP, start, end)
            number = _NUMBER.match(text, at + len(_STEP), end) if at >= 0 else None
            steps.append(int(number[1]) if number else None)
    return steps


def _parts(text: bytes | mmap.mmap) -> list[tuple[int, int]]:
    """Where each start's part of a log begins and ends."""
    starts = [found.start() for found in _STARTED.finditer(text)]
    return list(itertools.pairwise([*starts, len(text)]))


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """A log without reading it into memory, for those of long runs are large; empty where there is none."""
    if not path.is_file() or not path.stat().st_size:
        yield b""
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        yield text
