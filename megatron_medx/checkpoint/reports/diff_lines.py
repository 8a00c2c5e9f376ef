"""The text of `medx convert diff`, from what `diff.diff` found."""

import collections

from megatron_medx.checkpoint.reports.inspection_lines import table
from megatron_medx.checkpoint.reports.layer_ranges import by_layer, joined

NUM_SHOWN = 20
"""Differing tensors listed, the largest difference first, before the rest is counted."""


def diff_lines(report: dict, *, every_tensor: bool = False) -> list[str]:
    """Lines for a person: configuration first, then names, shapes, and values by size of their difference.

    Args:
        report: from `diff`.
        every_tensor: True lists every tensor that differs, False the NUM_SHOWN that differ most and equal layers of
            one side in one line.
    """
    first, second = report["folders"]
    lines = [f"first   {first}", f"second  {second}"]
    for title, name in (("networks", "network_differences"), ("runs", "run_differences")):
        if report[name]:
            lines += [f"the {title} differ in", *(f"  {line}" for line in report[name])]
    for side in ("first", "second"):
        lines += _alone(side, report[f"only_in_{side}"], every_tensor)
    lines += _other_shapes(report["other_shapes"], every_tensor)
    lines += _different(report["different"], report["parts"], every_tensor)
    return [*lines, "equal" if report["equal"] else "not equal"]


def _alone(side: str, tensors: list[dict], every_tensor: bool) -> list[str]:
    if not tensors:
        return []
    groups = _grouped(tensors, every_tensor, lambda one: tuple(one["shape"]))
    rows = [
        [f"  {name}", joined([one["megatron_name"] for one in group]), str(group[0]["shape"])]
        for name, group in groups.items()
    ]
    return [f"only in the {side}: {_counted(tensors)}", *table(rows)]


def _other_shapes(tensors: list[dict], every_tensor: bool) -> list[str]:
    if not tensors:
        return []
    groups = _grouped(tensors, every_tensor, lambda one: str(one["shapes"]))
    rows = [
        [f"  {name}", _both([one["megatron_names"] for one in group]), " and ".join(map(str, group[0]["shapes"]))]
        for name, group in groups.items()
    ]
    return [f"of two shapes: {_counted(tensors)}", *table(rows)]


def _different(tensors: list[dict], parts: dict, every_tensor: bool) -> list[str]:
    compared = sum(part["compared"] for part in parts.values())
    by_part = ", ".join(f"{name} {part['different']:,} of {part['compared']:,}" for name, part in parts.items())
    lines = [f"of {compared:,} tensors in both, {len(tensors):,} differ: {by_part}"]
    dtypes = collections.Counter(tuple(one["dtypes"]) for one in tensors if len(set(one["dtypes"])) > 1)
    lines += [f"of two dtypes: {count:,} tensors, {one} and {other}" for (one, other), count in dtypes.items()]
    shown = tensors if every_tensor else tensors[:NUM_SHOWN]
    if shown:
        titles = ["  tensor", "in Megatron", "relative", "largest", "norm of first", "of second"]
        lines += table([titles, *([f"  {one['name']}", _both([one["megatron_names"]]), *_sizes(one)] for one in shown)])
    return lines + ([f"  and {len(tensors) - len(shown):,} more"] if len(tensors) > len(shown) else [])


def _sizes(one: dict) -> list[str]:
    """Distances and norms; the distances are unknown where a NaN or an infinity stands on one side only."""
    distances = [
        "not finite" if one[name] is None else f"{one[name]:.3g}" for name in ("relative_diff", "max_abs_diff")
    ]
    return distances + [f"{norm:.6g}" for norm in one["norms"]]


def _both(pairs: list[list[str]]) -> str:
    """Megatron's name of a line's tensors; two where they stand at another place in the second network."""
    return " | ".join(dict.fromkeys(joined(list(side)) for side in zip(*pairs, strict=True)))


def _grouped(tensors: list[dict], every_tensor: bool, alike) -> dict[str, list[dict]]:
    return {one["name"]: [one] for one in tensors} if every_tensor else by_layer(tensors, alike)


def _counted(tensors: list[dict]) -> str:
    return f"{len(tensors):,} tensor" + ("" if len(tensors) == 1 else "s")
