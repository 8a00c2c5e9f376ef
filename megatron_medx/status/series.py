"""The numbers of a run as columns, read from its files as they grow: every step, every rank, every validation.

Comes in: metrics.jsonl, ranks.jsonl, validation.jsonl (run_folder/quantities.py says what stands in them). Goes out:
arrays of numbers, small enough for 100,000 steps. A step that a resume repeats replaces the one that was there.
"""

import bisect
import math
from array import array
from collections import deque
from itertools import chain, islice, zip_longest
from pathlib import Path

from megatron_medx.status.appended import AppendedLines

NUM_NEWEST = 20
"""Last lines of ranks.jsonl that are kept whole."""

_SOURCES = "source_tokens"
_NUMBERS = frozenset((int, float))


class StepSeries:
    """Columns of a metrics.jsonl; `refresh` reads what was added to it."""

    def __init__(self, path: Path):
        self.steps = array("q")
        """Ascending, each once."""
        self._lines = AppendedLines(path)
        self._columns: dict[str, array] = {}
        self._sources: dict[str, array] = {}

    @property
    def keys(self) -> list[str]:
        """Names of the numbers that any line had, in the order in which they were first seen."""
        return list(self._columns)

    @property
    def sources(self) -> dict[str, array]:
        """Tokens by source, a value a step as in `column`."""
        return {name: self._filled(values) for name, values in self._sources.items()}

    def column(self, key: str) -> array:
        """A value a step, float64; nan where it is null, not finite or missing, everywhere for an unknown key."""
        return self._filled(self._columns.get(key, array("d")))

    def refresh(self) -> None:
        """Read what was added since the last time, or all where the file is another one.

        Raises:
            OSError: the file is there and cannot be read.
        """
        is_new, batches = self._lines.look()
        if is_new:
            self._cut(0)
            self._columns.clear()
            self._sources.clear()
        for batch in batches:
            self._add(self._in_order(batch))

    def _in_order(self, batch: list[dict]) -> list[dict]:
        """Lines with ascending steps; those that a later one repeats are left out, of the columns as well."""
        kept: list[dict] = []
        for line in batch:
            step = line.get("step")
            if type(step) is not int:
                continue
            if self.steps and step <= self.steps[-1]:
                self._cut(bisect.bisect_left(self.steps, step))
            while kept and step <= kept[-1]["step"]:
                kept.pop()
            kept.append(line)
        return kept

    def _add(self, lines: list[dict]) -> None:
        """Add whole batches to a column at a time: twice as fast as number by number."""
        num_before = len(self.steps)
        self.steps.extend(line["step"] for line in lines)
        for key in dict.fromkeys(chain.from_iterable(lines)):
            values = [line.get(key) for line in lines]
            if key == _SOURCES:
                by_source = [value if type(value) is dict else {} for value in values]
                for name in dict.fromkeys(chain.from_iterable(by_source)):
                    _extend(self._sources, name, num_before, [tokens.get(name) for tokens in by_source])
            else:
                _extend(self._columns, key, num_before, values)

    def _cut(self, num_steps: int) -> None:
        """Keep the first steps alone."""
        for values in (self.steps, *self._columns.values(), *self._sources.values()):
            del values[num_steps:]

    def _filled(self, values: array) -> array:
        """A column is only as long as its last value; here it gets the length of `steps`."""
        missing = len(self.steps) - len(values)
        if missing:
            values.extend(array("d", [math.nan]) * missing)
        return values


def _extend(columns: dict[str, array], key: str, num_before: int, values: list) -> None:
    """Add values behind so many rows, of which those that the column lacks are nan; without a number nothing."""
    if _NUMBERS.isdisjoint(map(type, values)):
        return
    column = columns.setdefault(key, array("d"))
    column.extend(array("d", [math.nan]) * (num_before - len(column)))
    column.extend(_numbers(values))


def _numbers(values: list) -> array:
    """As float64; what is no number is nan."""
    if _NUMBERS.issuperset(map(type, values)):
        return array("d", values)
    return array("d", (value if type(value) in _NUMBERS else math.nan for value in values))


class RankSeries:
    """Lines of a ranks.jsonl, at most `max_lines`: of more, neighbors become one, with the largest value of each rank.

    So a rank that was slow once stays to be seen however long the run is. The step of such a line is the last of those
    in it. `newest` holds the last NUM_NEWEST lines as they are.

    Args:
        path: of the file.
        max_lines: an even number.
    """

    def __init__(self, path: Path, max_lines: int):
        self.newest: deque[dict] = deque(maxlen=NUM_NEWEST)
        self._lines, self._max_lines = AppendedLines(path), max_lines
        self._clear()

    @property
    def steps(self) -> array:
        """Steps of the lines, ascending."""
        return array("q", [step for step, _, _ in self._merged])

    @property
    def num_ranks(self) -> int:
        """Of the line with the most: an elastic run changes their number."""
        return max((len(ranks) for _, _, values in self._merged for ranks in values.values()), default=0)

    def by_line(self, key: str) -> list[array]:
        """For each line the values by rank, float64; nan where a rank has none, nothing where the line lacks the key.

        Args:
            key: of quantities.RANKS.
        """
        return [values.get(key, array("d")) for _, _, values in self._merged]

    def refresh(self) -> None:
        """Read what was added since the last time, or all where the file is another one.

        Raises:
            OSError: the file is there and cannot be read.
        """
        is_new, batches = self._lines.look()
        if is_new:
            self._clear()
        for line in chain.from_iterable(batches):
            if type(line.get("step")) is int:
                self._add(line)

    def _clear(self) -> None:
        self.newest.clear()
        self._stride = 1
        self._merged: list[tuple[int, int, dict[str, array]]] = []  # step, how many lines became it, values

    def _add(self, line: dict) -> None:
        step = line["step"]
        while self.newest and self.newest[-1]["step"] >= step:
            self.newest.pop()
        while self._merged and self._merged[-1][0] >= step:
            self._merged.pop()
        self.newest.append(line)
        values = {key: _numbers(ranks) for key, ranks in line.items() if isinstance(ranks, list)}
        if self._merged and self._merged[-1][1] < self._stride:
            self._merged[-1] = _joined(self._merged[-1], (step, 1, values))
        else:
            self._merged.append((step, 1, values))
        if len(self._merged) > self._max_lines:
            pairs = zip_longest(islice(self._merged, 0, None, 2), islice(self._merged, 1, None, 2))
            self._merged = [_joined(*pair) if pair[1] else pair[0] for pair in pairs]
            self._stride *= 2


def _joined(one: tuple, other: tuple) -> tuple[int, int, dict[str, array]]:
    """Two lines as one, (step, number of lines, values): of each rank the larger value."""
    values = {key: _largest(one[2].get(key, array("d")), other[2].get(key, array("d"))) for key in one[2] | other[2]}
    return other[0], one[1] + other[1], values


def _largest(one: array, other: array) -> array:
    """Of each rank the larger value; of a number and nan, or nothing, the number."""
    if len(one) == len(other) and not (math.isnan(sum(one)) or math.isnan(sum(other))):
        return array("d", map(max, one, other))
    pairs = zip_longest(one, other, fillvalue=math.nan)
    return array("d", (b if math.isnan(a) else a if math.isnan(b) else max(a, b) for a, b in pairs))


class ValidationSeries:
    """Lines of a validation.jsonl by the name of their set, each step once, in the order of steps.

    Args:
        path: of the file.
        main_set: of lines that name none: before sets had names there was one.
    """

    def __init__(self, path: Path, main_set: str):
        self.sets: dict[str, list[dict]] = {}
        self._lines, self._main_set = AppendedLines(path), main_set

    def refresh(self) -> None:
        """Read what was added since the last time, or all where the file is another one.

        Raises:
            OSError: the file is there and cannot be read.
        """
        is_new, batches = self._lines.look()
        if is_new:
            self.sets.clear()
        for line in chain.from_iterable(batches):
            if type(line.get("step")) is int:
                kept = self.sets.setdefault(str(line.get("set", self._main_set)), [])
                while kept and kept[-1]["step"] >= line["step"]:
                    kept.pop()
                kept.append(line)
