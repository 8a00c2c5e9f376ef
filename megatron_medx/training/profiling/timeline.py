"""What a thread worked for at each time, from the spans in a profiler's trace.

Spans of a thread are nested. The innermost mark around a time says the part; an operation of the backward pass belongs
to the part whose forward operation has its autograd sequence number.
"""

import bisect
import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from megatron_medx.training.profiling.vocabulary import (
    ACCUMULATION,
    ATTENTION_CORE,
    BACKWARD,
    BETWEEN,
    ELEMENTWISE,
    MARK,
    OTHER,
    STEP,
    kind_of,
)

EVALUATION, ACCUMULATE = "autograd::engine::evaluate_function", "AccumulateGrad"
"""The autograd engine's names for one node of the graph, and for the node that ends at a parameter."""

OPERATORS = ("aten::", "c10d::")


class Span(NamedTuple):
    """Something that a thread did from `start` to `end` (µs)."""

    start: float
    end: float
    name: str
    sequence_number: int | None = None
    """Autograd's; forward and backward operation of a node have the same."""
    undoes_forward: bool = False
    """It belongs to a node of the backward pass."""


class Work(NamedTuple):
    """What time is spent for."""

    part: str
    is_backward: bool
    kind: str


class Piece(NamedTuple):
    """A time (µs) in which a thread did one thing, innermost: nothing nested in it runs."""

    start: float
    end: float
    work: Work
    name: str


class Timeline:
    """The pieces of a thread's time, in order.

    Args:
        spans: of one thread.
        forward_parts: sequence number -> part of the forward operation that had it last. Forward operations add to it,
            backward ones read it, so threads with forward passes come first.
        only_in_steps: time outside of STEP ranges is left out; else it counts as OTHER.
    """

    def __init__(self, spans: Iterable[Span], forward_parts: dict[int, str], only_in_steps: bool):
        self._forward_parts = forward_parts
        self._outside = None if only_in_steps else _work(OTHER, False, BETWEEN)
        self.pieces = list(self._pieces(sorted(spans, key=lambda span: (span.start, -span.end))))
        self._starts = [piece.start for piece in self.pieces]

    def at(self, time_us: float) -> Work | None:
        """What the thread worked for at that time; None where it is left out or unknown."""
        index = bisect.bisect_right(self._starts, time_us) - 1
        return self.pieces[index].work if index >= 0 and time_us <= self.pieces[index].end else None

    def seconds_by_name(self) -> Counter[str]:
        """Seconds of each innermost operation, by name."""
        seconds: Counter[str] = Counter()
        for piece in self.pieces:
            seconds[piece.name] += (piece.end - piece.start) / 1e6
        return seconds

    def _pieces(self, spans: list[Span]) -> Iterator[Piece]:
        """Cut time wherever a span begins or ends.

        Example: a mark from 0 to 10 with an operator from 2 to 6 gives pieces 0-2, 2-6, 6-10.
        """
        nested: list[tuple[float, Work | None, str]] = []  # of each open span: end, work, name
        reached = 0.0

        def until(time_us: float) -> Iterator[Piece]:
            nonlocal reached
            if nested and nested[-1][1] is not None and time_us > reached:
                yield Piece(reached, time_us, nested[-1][1], nested[-1][2])
            reached = max(reached, time_us)

        for span in spans:
            while nested and nested[-1][0] <= span.start:
                yield from until(nested[-1][0])
                nested.pop()
            yield from until(span.start)
            around = nested[-1][1] if nested else self._outside
            end = min(span.end, nested[-1][0]) if nested else span.end
            nested.append((end, self._work_of(span, around), span.name))
        while nested:
            yield from until(nested[-1][0])
            nested.pop()

    def _work_of(self, span: Span, around: Work | None) -> Work | None:
        name, number = span.name, span.sequence_number
        if name.startswith(MARK):
            part = name.removeprefix(MARK)
            if part == STEP:
                return _work(OTHER, False, BETWEEN)
            return around and _work(part, around.is_backward or part == BACKWARD, BETWEEN)
        if around is None:
            return None
        if name.startswith(EVALUATION):
            part = ACCUMULATION if ACCUMULATE in name else self._forward_parts.get(number, around.part)
            return _work(part, True, BETWEEN)
        if number is not None and not span.undoes_forward:
            self._forward_parts[number] = around.part
        kind = around.kind if around.kind == ATTENTION_CORE else _kind_on_cpu(name)
        return _work(around.part, around.is_backward, kind)


@functools.cache
def _work(part: str, is_backward: bool, kind: str) -> Work:
    """One object for equal works: a trace has millions of pieces."""
    return Work(part, is_backward, kind)


@functools.cache
def _kind_on_cpu(name: str) -> str:
    """Kind of an operator; of a Python function in the graph, which only calls operators, the time between them."""
    kind = kind_of(name)
    return BETWEEN if kind == ELEMENTWISE and not name.startswith(OPERATORS) else kind
