"""The plan in words: a table for people, at most 100 columns wide, with a unit on every number.

Comes in: the dictionary of `report.py` alone, so that a table of a saved plan is the same.
"""

import itertools
import re
import textwrap
from collections.abc import Iterator

from megatron_medx.planner.report import LEAST_GAIN

WIDTH = 100
COLUMN = 13
"""Width of the first column, characters."""

KIND, FIGURE = 20, 6
"""Width of the columns of memory by stage: the kind's name, a number."""

JOINED = "\N{NO-BREAK SPACE}"

AXES = {
    "tensor": "hidden states of a layer",
    "context": "keys and values",
    "images": "image features",
    "expert": "tokens to experts and back",
    "pipeline": "hidden states to the neighbors",
    "data": "gradients and weights",
    "expert data": "the same of experts",
}
"""Axis -> what its messages hold."""


def report_lines(report: dict) -> list[str]:
    """Return the table of a plan."""
    rows = [
        *_run(report),
        *_parameters(report),
        *_memory(report["memory"]),
        *_work(report),
        *_traffic(report["traffic"]),
        *_pipeline(report["pipeline"], report["grid"]),
        *_time(report),
        *_better(report),
        ("estimates", "memory, bytes and times, from the ceilings that --json lists with their sources; not measured"),
    ]
    return [line for name, text in rows for line in _wrapped(name, text)]


def _wrapped(name: str, text: str) -> list[str]:
    """The lines of an entry; a number stays with its unit, and columns that are already aligned stay so."""
    text = re.sub(r"(?<=\d) (?=(ms|s|B|M|T|GB|[EPTGM]FLOP)\b)", JOINED, text)
    if len(text) <= WIDTH - COLUMN:
        wrapped = [text]
    else:
        indent = " " * (len(text) - len(text.lstrip()))
        wrapped = textwrap.wrap(
            text, WIDTH - COLUMN, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    lines = [f"{name if number == 0 else '':<{COLUMN}}{line}" for number, line in enumerate(wrapped)]
    return [line.replace(JOINED, " ").rstrip() for line in lines]


def _run(report: dict) -> Iterator[tuple[str, str]]:
    grid = report["grid"]
    axes = [f"{axis} {grid[axis]}" for axis in ("tensor", "pipeline", "context") if grid[axis] > 1]
    within = [f"{axis} {grid[axis]}" for axis in ("virtual_pipeline", "expert") if grid[axis] > 1]
    cut = " x ".join([*axes, f"data {grid['data']}"])
    recompute, precision = report["recompute"], report["precision"]
    numbers = precision["dtype"] + (f", FP8 {precision['fp8']}" if precision["fp8"] != "none" else "")
    yield "run", f"{report['recipe']} on {report['gpus']:,} GPUs"
    yield "grid", "; ".join([f"{cut} ({grid['from']})", *within])
    yield "precision", f"{numbers}; recompute {recompute['decoder']} (tower {recompute['vision']})"


def _parameters(report: dict) -> Iterator[tuple[str, str]]:
    counts = dict(report["parameters"])
    total = counts.pop("total")
    pieces = " + ".join(f"{piece} {_scaled(count)}" for piece, count in counts.items() if count)
    yield "parameters", f"{_scaled(total)} = {pieces}"


def _memory(memory: dict) -> Iterator[tuple[str, str]]:
    margin = memory["margin_bytes"] / 1e9
    room = f"{margin:.1f} GB below" if margin >= 0 else f"{-margin:.1f} GB ABOVE"
    yield (
        "memory",
        f"{_gb(memory['worst_rank_bytes'])} on the worst rank, {room} the {_gb(memory['limit_bytes'])} of a GPU",
    )
    yield "", " + ".join(f"{kind} {_gb(size)}" for kind, size in memory["worst_rank"].items() if size)
    if len(memory["stages"]) > 1:
        yield from _stages(memory["stages"])


def _stages(stages: list[dict]) -> Iterator[tuple[str, str]]:
    """Columns for pipeline stages, a line for each kind of memory that one of them has."""
    kinds = [kind for kind in stages[0] if any(stage[kind] for stage in stages)]
    per_line = (WIDTH - COLUMN - KIND) // FIGURE
    for start in range(0, len(stages), per_line):
        shown = stages[start : start + per_line]
        yield "  by stage", _columns("GB of stage", [str(start + number) for number in range(len(shown))])
        for kind in kinds:
            yield "", _columns(kind, [f"{stage[kind] / 1e9:.1f}" for stage in shown])
        yield "", _columns("sum", [f"{sum(stage.values()) / 1e9:.1f}" for stage in shown])


def _columns(name: str, figures: list[str]) -> str:
    return f"{name:<{KIND}}" + "".join(f"{figure:>{FIGURE}}" for figure in figures)


def _work(report: dict) -> Iterator[tuple[str, str]]:
    data, flops = report["data"], dict(report["flops_per_step"])
    total = flops.pop("total")
    yield "rows", data["source"]
    yield (
        "",
        f"a row: {data['token_slots_per_row']:,.0f} token slots, {data['filled_share']:.1%} filled; "
        f"{data['samples_per_row']:.1f} samples, {data['images_per_row']:.1f} images of {data['patches_per_row']:,.0f} "
        f"patches in all, {data['image_token_share']:.1%} of its tokens",
    )
    yield (
        "step",
        f"{data['rows_per_step']:,} rows, {_scaled(total, 'FLOP')} = "
        + " + ".join(f"{part} {share / total:.1%}" for part, share in flops.items()),
    )


def _traffic(traffic: list[dict]) -> Iterator[tuple[str, str]]:
    for number, entry in enumerate(traffic):
        link = f"{entry['link']}, {entry['bytes_per_s'] / 1e9:.0f} GB/s"
        yield (
            "sent a step" if number == 0 else "",
            f"{entry['axis']:<11} {_gb(entry['bytes_per_step']):>10} by each of {entry['ranks']:,} over {link}: "
            f"{AXES[entry['axis']]}",
        )


def _pipeline(pipeline: dict, grid: dict) -> Iterator[tuple[str, str]]:
    stages = pipeline["stages"]
    if len(stages) == 1:
        return
    schedule = f"interleaved, {grid['virtual_pipeline']} chunks a stage" if grid["virtual_pipeline"] > 1 else "1F1B"
    yield (
        "pipeline",
        f"{len(stages)} stages, {schedule}, {pipeline['rows_per_replica']:,} rows a replica: "
        f"{_seconds(pipeline['seconds'])}, of which stages wait {pipeline['idle_share']:.1%}",
    )
    works = [(stage["layers"], _seconds(stage["busy_seconds"])) for stage in stages]
    runs = [(len(list(same)), *work) for work, same in itertools.groupby(works)]
    yield "", "; ".join(f"{count} x " * (count > 1) + f"{layers} layers work {time}" for count, layers, time in runs)


def _time(report: dict) -> Iterator[tuple[str, str]]:
    step, speed, run = report["step_seconds"], report["speed"], report["run"]
    kinds = sorted(step["by_kind"].items(), key=lambda entry: -entry[1])
    shown = [(kind, seconds) for kind, seconds in kinds if seconds >= 0.005 * step["total"]]
    yield "step time", f"{_seconds(step['total'])}, on the busiest stage:"
    yield "", " + ".join(f"{kind} {_seconds(seconds)}" for kind, seconds in shown)
    if speed["slowest_replica_over_mean"] > 1.001:
        yield "", f"the slowest replica's rows cost {speed['slowest_replica_over_mean'] - 1:.1%} more than the mean"
    yield (
        "speed",
        f"{_short(speed['model_tflops_per_s_per_gpu'])} TFLOP/s a GPU, {speed['mfu']:.1%} MFU of the "
        f"{report['precision']['dtype']} peak; {speed['token_slots_per_s']:,.0f} token slots/s, "
        f"{speed['token_slots_per_s_per_gpu']:,.0f} a GPU",
    )
    yield (
        "whole run",
        f"{run['steps']:,} steps, {_scaled(run['token_slots'])} token slots: {_short(run['days'])} days = "
        f"{_short(run['hours'])} hours x {report['gpus']:,} GPUs = {_short(run['gpu_hours'])} GPU-hours",
    )


def _better(report: dict) -> Iterator[tuple[str, str]]:
    if not report["better"]:
        yield "better", f"the search found no legal grid that fits and saves {LEAST_GAIN:.0%} of a step or more"
    for number, entry in enumerate(report["better"]):
        yield (
            "better" if number == 0 else "",
            f"{_seconds(entry['step_seconds'])} a step, {entry['saved_share']:.0%} less, {entry['mfu']:.1%} MFU, "
            f"{_gb(entry['worst_rank_bytes'])}, {_short(entry['gpu_hours'])} GPU-hours:",
        )
        yield "", f"  {entry['overrides']}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e9:.3f} GB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _short(number: float) -> str:
    """Whole from 100 on, three digits below: 3,073 and 47.9 and 0.0028."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number >= 0.001 else "under 0.001"


def _scaled(number: float, unit: str = "") -> str:
    """`8767123696` -> `8.767 B`, with a unit `4.3e16` -> `43 PFLOP`."""
    steps = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
    if not unit:
        steps = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
    for size, letter in steps:
        if number >= size:
            return f"{number / size:.4g} {letter}{unit}"
    return f"{number:,.0f} {unit}".rstrip()
