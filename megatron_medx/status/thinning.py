"""Long curves made short enough to be drawn, without what a person looks for: spikes, and gaps."""

import math
from collections.abc import Sequence


def thin(steps: Sequence[int], values: Sequence[float], max_points: int) -> tuple[list[int], list[float]]:
    """At most `max_points` points of a curve, in order: of each stretch the smallest and the largest value, and a gap.

    The curve is cut into stretches of equally many points. Each gives its smallest and its largest value at their own
    steps, and one nan where it has any, so that a spike of one step stays as high, and a step without a value stays
    a gap. The first and the last point stay. A short curve is returned as it is.

    Args:
        steps: ascending.
        values: as many; nan where there is none.
        max_points: at least 5.

    Example: values 1 9 1 1 nan 1 1 1 at steps 1 to 8 with 5 points are one stretch: 1 at step 1, 9 at step 2, nan at
    step 5, 1 at step 8.
    """
    if len(steps) <= max_points:
        return list(steps), list(values)
    num_stretches = (max_points - 2) // 3
    kept = {0, len(steps) - 1}
    for number in range(num_stretches):
        first, last = (len(steps) * edge // num_stretches for edge in (number, number + 1))
        kept.update(first + offset for offset in _telling(values[first:last]))
    order = sorted(kept)
    return [steps[index] for index in order], [values[index] for index in order]


def _telling(values: Sequence[float]) -> set[int]:
    """Where the smallest and the largest value of a stretch are, and the first nan."""
    gap = next((offset for offset, value in enumerate(values) if math.isnan(value)), None)
    if gap is None:
        return {values.index(min(values)), values.index(max(values))}
    finite = [(value, offset) for offset, value in enumerate(values) if not math.isnan(value)]
    return {gap} | ({min(finite)[1], max(finite)[1]} if finite else set())
