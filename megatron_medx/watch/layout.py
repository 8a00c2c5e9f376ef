"""The screen of `medx watch` as lines: what is shown, and what is left out where it does not fit.

From the top: a head for each run, what needs a person, curves, numbers, what happened, keys. Too little height takes
from what happened first, then from the numbers the least important, then the second chart, then the chart; head, needs
and keys stay. Too little width takes columns of numbers, then the ends of lines.
"""

import bisect
import math
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.text import Text

from megatron_medx.run_folder.quantities import PARTS, STEP, VALIDATION, Quantity
from megatron_medx.status.history_lines import attention, happened
from megatron_medx.status.words import counted, duration
from megatron_medx.watch.chart import MIN_HEIGHT, MIN_WIDTH, Curve, chart
from megatron_medx.watch.number_lines import GAP, number_lines, side_by_side
from megatron_medx.watch.numbers import rows
from megatron_medx.watch.styles import STATE_STYLES, STYLES, run_letter
from megatron_medx.watch.watched_run import WatchedRun

VALIDATION_CURVE = "validation"
CURVES = ("loss", VALIDATION_CURVE, "grad_norm", "lr", "step_time_s", "data_wait_s", "memory_gb")
"""What the chart goes through: columns of metrics.jsonl, and the losses of all validation sets."""

BESIDE_WIDTH = 96
"""Characters from which on two charts stand side by side."""

MOST_CHART_ROWS, ONCE_CHART_ROWS = 20, 12
"""Lines of a chart on a tall screen, and on paper."""

FEWEST_CHART_ROWS, FEWEST_NUMBERS = 8, 6
"""Lines of a chart that numbers leave room for, and of numbers that a chart leaves room for."""

NAME_PART = 3
"""The name of a folder takes at most this part of its line; a longer one loses its begin."""

PART_OF_STEPS = 10
"""Zoomed, the last tenth of the steps is shown."""

KEYS = "q quit   d definitions   c next curve   z "


@dataclass(slots=True)
class View:
    """What keys change."""

    curve: int = 0
    """Of CURVES."""
    is_zoomed: bool = False
    """The last steps alone."""


def screen_lines(runs: list[WatchedRun], view: View, width: int, height: int | None) -> list[Text]:
    """The screen, no line wider than it; without a height everything, without keys.

    Args:
        runs: looked at.
        view: which curve, which steps.
        width: characters, at least 1.
        height: lines, at least 1; None for paper.
    """
    lines = _lines(runs, view, width, height)
    for line in lines:
        # names of folders and errors of libraries may hold anything, what moves a cursor as well
        line.plain = "".join(character if character.isprintable() else "?" for character in line.plain)
        line.truncate(width, overflow="ellipsis")
    return lines


def _lines(runs: list[WatchedRun], view: View, width: int, height: int | None) -> list[Text]:
    head = [line for number, run in enumerate(runs) for line in _head(run, number, len(runs), width)]
    needs = _needs(runs)
    table = rows(runs)
    if height is None:
        charts = _charts(runs, view, width, ONCE_CHART_ROWS * (1 if width >= BESIDE_WIDTH else 2))
        return [*head, *needs, Text(), *charts, Text(), *number_lines(table, len(runs), width), *_happened(runs)]
    needs = needs[: max(1, height // 8)]
    room = height - len(head) - len(needs) - 1
    for_charts = min(max(FEWEST_CHART_ROWS, room - len(number_lines(table, len(runs), width))), room - FEWEST_NUMBERS)
    charts = _charts(runs, view, width, for_charts)
    numbers = number_lines(table, len(runs), width, max(0, room - len(charts)))
    body = [*head, *needs, *charts, *numbers]
    body = [*body, *_happened(runs)[: max(0, height - 1 - len(body))]][: height - 1]
    keys = Text(KEYS + ("all steps" if view.is_zoomed else "last steps"), style="dim")
    return [*body, *[Text()] * (height - 1 - len(body)), keys]


def _head(run: WatchedRun, number: int, num_runs: int, width: int) -> list[Text]:
    """Of a single run two lines, of several one each, with the letter of its curves."""
    report = run.report
    line = Text()
    if num_runs > 1:
        line.append(f"{run_letter(number)} ", style=STYLES[number % len(STYLES)])
    name = str(run.folder)
    most = width // NAME_PART
    line.append((name if len(name) <= most else f"…{name[1 - most :]}") + "  ", style="bold")
    if run.problem is not None or report is None:
        return [line.append(f"cannot be read: {run.problem}", style="red")]
    state = report["state"]["name"]
    line.append(state, style=f"bold {STATE_STYLES.get(state, 'yellow')}")
    progress = _progress(report)
    if num_runs > 1:
        return [line.append(f"  {progress}")]
    ranks = "" if report["num_ranks"] is None else f", {counted(report['num_ranks'], 'rank')}"
    line.append(f"  {report['recipe'] or 'no recipe yet'}{ranks}  ").append(report["state"]["why"], style="dim")
    return [line, _bar(report, progress, width)]


def _progress(report: dict) -> str:
    """Step, of how many, how much time is left."""
    steps, left = report["steps"], report["left"]
    text = f"{STEP['step'].label} {report['step']:,}"
    if steps:
        text += f" of {steps:,} ({report['step'] / steps:.1%})"
    return text + (f", {duration(left['time_s'])} left" if left else "")


def _bar(report: dict, progress: str, width: int) -> Text:
    num_cells = min(40, width - cell_len(progress) - 2)
    line = Text(progress)
    if report["steps"] and num_cells >= 8:
        done = round(num_cells * min(1.0, report["step"] / report["steps"]))
        line.append("  " + "█" * done, style="green").append("░" * (num_cells - done), style="dim")
    return line


def _needs(runs: list[WatchedRun]) -> list[Text]:
    """What a person should do something about, and the errors of runs that stopped."""
    lines = []
    for number, run in enumerate(runs):
        if run.report is None:
            continue
        of = f"{run_letter(number)} " if len(runs) > 1 else ""
        error = (run.report["state"]["error"] or "").splitlines()[:1]
        lines += [Text(f"{of}! {text}", style="red") for text in (*error, *(row for _, row in attention(run.report)))]
    return lines


def _charts(runs: list[WatchedRun], view: View, width: int, height: int) -> list[Text]:
    """The chosen curve, and where there is room beside or below it the validation losses."""
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return []
    key, first = CURVES[view.curve], _first_step(runs) if view.is_zoomed else 0
    validations = [_cut(curve, first) for curve in _validation_curves(runs)]
    below = _title(VALIDATION["loss"])
    if key == VALIDATION_CURVE:
        return chart(below, validations, width, min(height, MOST_CHART_ROWS))
    title, curves = _title(STEP[key]), [_cut(curve, first) for curve in _step_curves(runs, key)]
    if validations and width >= BESIDE_WIDTH:
        half, height = (width - GAP) // 2, min(height, MOST_CHART_ROWS)
        pairs = zip(chart(title, curves, half, height), chart(below, validations, half, height), strict=True)
        return [side_by_side([left, right], [half, half]) for left, right in pairs]
    if validations and height >= 2 * FEWEST_CHART_ROWS:
        each = min(height // 2, MOST_CHART_ROWS)
        return chart(title, curves, width, each) + chart(below, validations, width, each)
    return chart(title, curves, width, min(height, MOST_CHART_ROWS))


def _title(quantity: Quantity) -> str:
    return f"{quantity.label} ({quantity.unit})" if quantity.unit else quantity.label


def _first_step(runs: list[WatchedRun]) -> int:
    """Where the last steps begin."""
    last = max((run.steps.steps[-1] for run in runs if run.steps.steps), default=0)
    return last - last // PART_OF_STEPS


def _cut(curve: Curve, first_step: int) -> Curve:
    """From a step on."""
    if not first_step:
        return curve
    begin = bisect.bisect_left(curve.steps, first_step)
    return replace(curve, steps=curve.steps[begin:], values=curve.values[begin:])


def _step_curves(runs: list[WatchedRun], key: str) -> list[Curve]:
    """Of each run; of a single one for each part of the network, where it is told apart."""
    if len(runs) == 1 and f"{key}_{PARTS[0]}" in STEP:
        steps, keys = runs[0].steps, [key, *(f"{key}_{part}" for part in PARTS)]
        labels = [STEP[key].label.rpartition(", ")[2] for key in keys]
        return [
            Curve(label, str(number), STYLES[number], steps.steps, steps.column(key))
            for number, (label, key) in enumerate(zip(labels, keys, strict=True))
            if key in steps.keys or number == 0
        ]
    return [
        Curve(run.name, run_letter(number), STYLES[number % len(STYLES)], run.steps.steps, run.steps.column(key))
        for number, run in enumerate(runs)
    ]


def _validation_curves(runs: list[WatchedRun]) -> list[Curve]:
    """Of each set of each run; letters and colors tell runs apart, numbers the sets, of a single run with colors."""
    curves, names = [], list(dict.fromkeys(name for run in runs for name in run.validations.sets))
    for number, run in enumerate(runs):
        for name, lines in run.validations.sets.items():
            losses = [line.get("loss") for line in lines]
            values = [loss if isinstance(loss, int | float) else math.nan for loss in losses]
            place, letter = names.index(name), run_letter(number) if len(runs) > 1 else ""
            style = STYLES[(number if len(runs) > 1 else place) % len(STYLES)]
            curves.append(Curve(name, f"{letter}{place + 1}", style, [line["step"] for line in lines], values))
    return curves


def _happened(runs: list[WatchedRun]) -> list[Text]:
    """Signals, hangs, rollbacks, as `medx status` tells them."""
    lines = []
    for number, run in enumerate(runs):
        of = f"{run_letter(number)} " if len(runs) > 1 else ""
        if run.report is not None:
            found = happened(run.report)
            name_width = max((len(name) for name, _ in found), default=0)
            lines += [Text(f"{of}{name:<{name_width}}  {text}", style="dim") for name, text in found]
    return lines
