"""`checkpoints/skipped_rows.jsonl`: rows of the plan that a run leaves out since it was rolled back.

A position counts the rows that a run has consumed, over all ranks: it is the only state of the order of data, and a
checkpoint holds it. A row is a number of the plan (data/plan/). Without skipped rows the two are equal; with them,
position p is the p-th row, from 0, that is not skipped. Example, rows 2 to 3 and row 6 left out:

    position   0  1  2  3  4  5  6
    row        0  1  4  5  7  8  9

A rollback leaves out rows at and behind the position of the checkpoint that is gone back to, so every position
trained before keeps its row, and a run that never had the skipped rows would see the same ones.

A line of the file is a rollback: `first` and `last`, the rows left out, both included, and `from_step`, the step at
which it was decided. Every rank reads the file when it starts; it is written between launches alone.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_medx.errors import CheckpointError
from megatron_medx.run_folder.integrity import write_at_once
from megatron_medx.run_folder.names import SKIPPED_ROWS_FILE


@dataclass(frozen=True, slots=True)
class SkippedRows:
    """What one rollback left out."""

    first: int
    last: int
    """Rows of the plan, both included."""
    from_step: int
    """Step, from 1, at which the run was rolled back."""


def read_skips(checkpoints: Path) -> list[SkippedRows]:
    """The rollbacks of a run, oldest first; none where there is no file.

    Args:
        checkpoints: root of the run's checkpoints.

    Raises:
        CheckpointError: a line is not one that `add_skip` wrote: without it rows would be in another order.
    """
    path = checkpoints / SKIPPED_ROWS_FILE
    if not path.is_file():
        return []
    skips = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            skip = SkippedRows(**json.loads(text))
            sound = 0 <= skip.first <= skip.last
        except (ValueError, TypeError):  # no JSON; other keys, or no numbers
            sound = False
        if not sound:
            raise CheckpointError(
                f"{path}, line {number}: {text[:80]!r}",
                'rows left out, as {"first": 8, "last": 15, "from_step": 4}',
                "restore the file: the rows of the run hang on it. events.jsonl names them (rolled_back)",
            )
        skips.append(skip)
    return skips


def add_skip(checkpoints: Path, skip: SkippedRows) -> None:
    """Add a rollback; after a crash at any instant there is the former file or the new one, whole and on the disk.

    Args:
        checkpoints: root of the run's checkpoints.
        skip: behind those that `read_skips` gives.

    Raises:
        OSError: the disk does not take it; the former file is as it was.
    """
    lines = (json.dumps(asdict(one)) + "\n" for one in (*read_skips(checkpoints), skip))
    write_at_once(checkpoints / SKIPPED_ROWS_FILE, "".join(lines))
    folder = os.open(checkpoints, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too, is to outlive the machine
    finally:
        os.close(folder)


def merged(skips: Iterable[SkippedRows]) -> list[tuple[int, int]]:
    """Ranges (first, last) of skipped rows, ascending; those that overlap or touch are one.

    Example: 8 to 11, 2 to 3 and 10 to 15 are (2, 3), (8, 15). A rollback's rows overlap those of an earlier one where
    its bad steps lie on both sides of them.
    """
    ranges: list[tuple[int, int]] = []
    for first, last in sorted((skip.first, skip.last) for skip in skips):
        if ranges and first <= ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], max(last, ranges[-1][1])
        else:
            ranges.append((first, last))
    return ranges


def row_at(position: int, ranges: Sequence[tuple[int, int]]) -> int:
    """The row of the plan at a position of the run.

    Args:
        position: rows consumed before it, by all ranks.
        ranges: from `merged`.

    Example: at position 4 with ranges (2, 3) and (6, 6): 4 lies behind the start of the first, so it becomes 6; that
    is not before the second, so it becomes 7.
    """
    row = position
    for first, last in ranges:
        if row < first:
            break
        row += last - first + 1
    return row


def num_skipped(ranges: Sequence[tuple[int, int]]) -> int:
    """Rows in ranges from `merged`."""
    return sum(last - first + 1 for first, last in ranges)
