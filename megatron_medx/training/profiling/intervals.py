"""Lengths of unions of intervals, and of what lies in them."""

import bisect
import itertools
from collections.abc import Iterable


class Intervals:
    """A union of intervals.

    Example: (0, 4), (2, 5), (7, 8) have length 6; of (3, 7.5) they cover 2.5.
    """

    def __init__(self, spans: Iterable[tuple[float, float]]):
        self._starts: list[float] = []
        self._ends: list[float] = []
        for start, end in sorted(spans):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)
        lengths = (end - start for start, end in zip(self._starts, self._ends, strict=True))
        self._lengths = [0.0, *itertools.accumulate(lengths)]

    @property
    def length(self) -> float:
        """Of the union."""
        return self._lengths[-1]

    def hold(self, time: float) -> bool:
        """Whether a time lies in one of them."""
        index = bisect.bisect_right(self._starts, time) - 1
        return index >= 0 and time <= self._ends[index]

    def covered(self, start: float, end: float) -> float:
        """How much of an interval lies in them."""
        return self._length_until(end) - self._length_until(start)

    def _length_until(self, time: float) -> float:
        index = bisect.bisect_right(self._starts, time) - 1
        if index < 0:
            return 0.0
        return self._lengths[index] + min(time, self._ends[index]) - self._starts[index]
