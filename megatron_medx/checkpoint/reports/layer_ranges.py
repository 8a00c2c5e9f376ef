"""Names of repeated layers in one line: `blocks.0.norm1`, `blocks.1.norm1`, ... as `blocks.{0..26}.norm1`."""

import re
from collections.abc import Callable, Hashable, Iterable

_LAYER = re.compile(r"\.(\d+)\.")


def by_layer(tensors: Iterable[dict], alike: Callable[[dict], Hashable]) -> dict[str, list[dict]]:
    """Put tensors that differ only in their layer under one name.

    Args:
        tensors: each with a `name`.
        alike: what tensors of one line must have in common besides, e.g. their shape.
    Returns:
        Name with `{0..35}` (or the number itself where there is one layer) -> its tensors; in the order of the first.
    """
    groups: dict[tuple[str, Hashable], list[dict]] = {}
    for tensor in tensors:
        groups.setdefault((_LAYER.sub(".*.", tensor["name"], count=1), alike(tensor)), []).append(tensor)
    return {joined([one["name"] for one in group]): group for group in groups.values()}


def joined(names: list[str]) -> str:
    """One name for names that differ in their first number alone: `blocks.{0..26}.norm1`; a single name stays."""
    if len(set(names)) == 1:
        return names[0]
    numbers = sorted(int(_LAYER.search(name)[1]) for name in names)
    return _LAYER.sub(f".{{{_ranges(numbers)}}}.", names[0], count=1)


def _ranges(numbers: list[int]) -> str:
    """`[0, 1, 2, 5]` -> `0..2,5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
