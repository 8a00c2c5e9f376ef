"""The pipeline's schedule played through: when each stage runs which pass of which row, and how long it waits.

Comes in: seconds of both passes of every chunk for every row. Goes out: passes with start and end. Two schedules, in
the order in which Megatron runs them (`megatron/core/pipeline_parallel/schedules.py`): 1F1B, and interleaved where
stages hold several chunks.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Pass(NamedTuple):
    """One pass of one row through one chunk."""

    start_s: float
    end_s: float
    row: int
    chunk: int
    is_forward: bool


class Timeline(NamedTuple):
    """A replica's step, without what follows the last row."""

    stages: list[list[Pass]]
    """Passes of each stage in their order."""
    total_s: float

    @property
    def busy_s(self) -> list[float]:
        """Seconds in which each stage computes."""
        return [sum(run.end_s - run.start_s for run in stage) for stage in self.stages]

    @property
    def idle_share(self) -> float:
        """Share of all stages' time in which they wait.

        With P equal stages of v chunks, m rows and no time between stages it is (P - 1) / (v m + P - 1).
        """
        return 1 - sum(self.busy_s) / (len(self.stages) * self.total_s)


RowSeconds = Sequence[Sequence[tuple[float, float]]]
"""[stage][chunk] -> (forward, backward) seconds of one row."""


def orders(num_stages: int, num_chunks: int, num_rows: int, stage: int) -> list[tuple[int, int, bool]]:
    """Return (row, chunk, is forward) of every pass of a stage, in the order in which it runs them.

    A stage begins with so many forward passes that the stages behind it have work, then takes one forward and one
    backward pass in turn. Interleaved, rows go through in groups of as many as there are stages: a group's rows through
    the first chunk, then through the second, ...

    Example (2 stages, 1 chunk, 3 rows, stage 0): F0 F1 B0 F2 B1 B2.
    """
    count = num_rows * num_chunks
    group = num_stages * num_chunks
    if num_chunks == 1:
        ahead = num_stages - stage - 1
    else:
        ahead = 2 * (num_stages - stage - 1) + (num_chunks - 1) * num_stages
    ahead = min(ahead, count)

    def virtual_row(number: int) -> tuple[int, int]:
        """Row and chunk of the number-th forward pass."""
        if num_chunks == 1:
            return number, 0
        before, place = divmod(number, group)
        return before * num_stages + place % num_stages, place // num_stages

    forward = [(*virtual_row(number), True) for number in range(count)]
    backward = [(row, num_chunks - 1 - chunk, False) for row, chunk, _ in forward]
    order = forward[:ahead]
    for number in range(count - ahead):
        order += [forward[ahead + number], backward[number]]
    return order + backward[count - ahead :]


def simulate(rows: Sequence[RowSeconds], hop_s: float = 0.0) -> Timeline:
    """Run all rows of a replica through its stages.

    Args:
        rows: of the step, in their order; all with the same stages and chunks. Interleaved, a multiple of the stages.
        hop_s: from the end of a pass on one stage to its arrival on the next.
    """
    num_stages, num_chunks = len(rows[0]), len(rows[0][0])
    todo = [orders(num_stages, num_chunks, len(rows), stage) for stage in range(num_stages)]
    done: dict[tuple[int, int, bool, int], float] = {}
    played: list[list[Pass]] = [[] for _ in range(num_stages)]
    free = [0.0] * num_stages
    waiting = list(range(num_stages))
    while waiting:
        stage = waiting.pop()
        before = len(played[stage])
        for row, chunk, is_forward in todo[stage][before:]:
            ready = _ready(done, (row, chunk, is_forward), stage, (num_stages, num_chunks), hop_s)
            if ready is None:
                break
            start = max(free[stage], ready)
            free[stage] = start + rows[row][stage][chunk][0 if is_forward else 1]
            done[row, chunk, is_forward, stage] = free[stage]
            played[stage].append(Pass(start, free[stage], row, chunk, is_forward))
        if len(played[stage]) > before:
            waiting += [other for other in {(stage - 1) % num_stages, (stage + 1) % num_stages} if other not in waiting]
    assert all(len(stage) == len(order) for stage, order in zip(played, todo, strict=True)), "the schedule is stuck"
    return Timeline(played, max(free))


def _ready(
    done: dict[tuple[int, int, bool, int], float],
    what: tuple[int, int, bool],
    stage: int,
    shape: tuple[int, int],
    hop_s: float,
) -> float | None:
    """When the input of a pass is there: 0 for the first of all, None where what makes it has not been played yet."""
    row, chunk, is_forward = what
    num_stages, num_chunks = shape
    step, first, last_chunk = (-1, 0, 0) if is_forward else (1, num_stages - 1, num_chunks - 1)
    if stage == first and chunk == last_chunk:
        return 0.0 if is_forward else done.get((row, chunk, True, stage))
    before = (row, chunk, is_forward, stage + step)
    if stage == first:
        before = (row, chunk + step, is_forward, num_stages - 1 - first)
    made = done.get(before)
    return None if made is None else made + (hop_s if num_stages > 1 else 0.0)
