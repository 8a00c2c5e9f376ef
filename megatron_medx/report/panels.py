"""Which curves the page draws: a table of panels, and the numbers of a run that go into them.

Comes in: a RunRecord, and that of its parent. Goes out: Panels of Curves, for curves.py. A number that a run lacks
gives no curve, a panel without curves is left out.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from megatron_medx.config.validation import MAIN_SET
from megatron_medx.report.definitions import Definition, definition
from megatron_medx.report.record import RunRecord
from megatron_medx.run_folder.quantities import PARTS

NUM_WINDOWS = 300
"""Stretches of a long run that means and percentiles are taken over, at most."""

MIN_WINDOW_STEPS = 10
"""And a stretch has at least so many steps."""

MAX_NAMED = 10
"""Modalities or sources of a set that get a curve, those with the most trained tokens; tables have all."""


@dataclass(slots=True)
class Curve:
    """One line of a panel."""

    label: str
    steps: np.ndarray
    """(N,) int64, ascending."""
    values: np.ndarray
    """(N,) float64, as shown, per cent where the unit says so; nan is a gap."""
    color: int
    """Number of a color; a run's curve and its parent's have the same."""
    is_parent: bool = False
    is_faint: bool = False
    """Single steps behind a curve of their means, with which they share a name."""
    has_marks: bool = False
    """Each point is one measurement, as of a validation."""


@dataclass(slots=True)
class Panel:
    """Curves of one unit above one another."""

    name: str
    title: str
    definitions: list[Definition]
    curves: list[Curve] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """Of all its curves."""
        return self.definitions[0].unit

    @property
    def is_logarithmic(self) -> bool:
        """Whether the axis of values is: its numbers are above 0."""
        return self.name.startswith(LOGARITHMIC) and all(np.nanmin(curve.values) > 0 for curve in self.curves)


STEP_PANELS = (
    ("loss", "Loss", ("step.loss",)),
    ("gradient-norm", "Gradient norm", ("step.grad_norm", *(f"step.grad_norm_{part}" for part in PARTS))),
    ("learning-rate", "Learning rate", ("step.lr", *(f"step.lr_{part}" for part in PARTS))),
    ("tokens", "Tokens per second", ("derived.tokens_per_s",)),
    (
        "step-time",
        "Step time",
        ("step.step_time_s", *(f"derived.step_time_p{share}_s" for share in (50, 90, 99))),
    ),
    ("data-wait", "Data wait", ("step.data_wait_s",)),
    ("tflops", "Model TFLOP/s", ("step.model_tflops_per_s",)),
    ("mfu", "MFU", ("step.mfu",)),
    ("memory", "Memory", ("step.memory_gb",)),
)
"""Name, title and quantities of each panel of steps."""

SET_PANELS = (
    ("perplexity", "Perplexity", "validation.perplexity"),
    ("bits-per-byte", "Bits per byte", "validation.bits_per_byte"),
    ("accuracy", "Accuracy", "validation.accuracy"),
)
"""Name, title and quantity of each panel of validation sets."""

LOGARITHMIC = ("loss", "gradient-norm", "step-time", "perplexity", "by-modality", "by-source")
"""Panels, by the beginning of their names, in which both the first steps and the last are to be seen."""

_SMOOTH = ("step.lr", "step.memory_gb")
"""Quantities, by the beginning of their names, that do not vary from step to step; others are drawn as means."""

_CROWDED = "step.grad_norm_"
"""Quantities of which single steps are not drawn: the parts of one that is."""


def step_panels(run: RunRecord, parent: RunRecord | None) -> tuple[list[Panel], list[str]]:
    """Panels of what metrics.jsonl tells, with the validation losses in that of the loss; titles of empty ones.

    Args:
        run: its curves are solid.
        parent: its curves are dashed, if there is one.
    """
    panels = []
    for name, title, names in STEP_PANELS:
        panel = Panel(name, title, [definition(each) for each in names])
        for record in filter(None, (run, parent)):
            for color, each in enumerate(names):
                panel.curves += _step_curves(record, each, color, is_parent=record is parent)
            if name == "loss":
                panel.curves += _set_curves(record, "validation.loss", len(names), is_parent=record is parent)
        if name == "loss":
            panel.definitions.append(definition("validation.loss"))
        panels.append(panel)
    return [panel for panel in panels if panel.curves], [panel.title for panel in panels if not panel.curves]


def validation_panels(run: RunRecord, parent: RunRecord | None) -> list[Panel]:
    """Panels of the sets beside one another, then of each set by modality and by source."""
    panels = []
    for name, title, quantity in SET_PANELS:
        panel = Panel(name, title, [definition(quantity)])
        for record in filter(None, (run, parent)):
            panel.curves += _set_curves(record, quantity, 0, is_parent=record is parent)
        panels.append(panel)
    for number, (set_name, lines) in enumerate(run.validations.items()):
        for key in ("by_modality", "by_source"):
            what = definition(f"validation.{key}")
            panel = Panel(f"{key.replace('_', '-')}-{number}", f"{set_name}: {what.label}", [what])
            panel.curves += _named_curves(lines, key, is_parent=False)
            if parent is not None and set_name in parent.validations:
                panel.curves += _named_curves(parent.validations[set_name], key, is_parent=True)
            panels.append(panel)
    return [panel for panel in panels if panel.curves]


def mixture_panel(run: RunRecord) -> Panel | None:
    """Share of each source in the tokens of the steps; None where metrics.jsonl does not tell sources apart."""
    sources = {name: np.nan_to_num(np.asarray(values)) for name, values in run.steps.sources.items()}
    if not sources:
        return None
    panel = Panel("mixture", "Mixture", [definition("derived.mixture_share")])
    windows = list(_windows(len(run.steps.steps)))
    total = np.array([sum(values[window].sum() for values in sources.values()) for window in windows])
    for color, (name, values) in enumerate(sources.items()):
        shares = np.array([values[window].sum() for window in windows]) / np.where(total > 0, total, np.nan)
        panel.curves.append(Curve(name, _window_steps(run, windows), 100 * shares, color))
    return panel


def step_values(run: RunRecord, name: str) -> np.ndarray:
    """Values of a quantity of steps, float64 and as shown: per cent where its unit says so; nan where there is none.

    Args:
        run: the run.
        name: `step.KEY` or `derived.tokens_per_s`.
    """
    if name == "derived.tokens_per_s":
        times_s = np.asarray(run.steps.column("step_time_s"))
        return np.asarray(run.steps.column("tokens")) / np.where(times_s > 0, times_s, np.nan)
    values = np.asarray(run.steps.column(name.removeprefix("step.")))
    return 100 * values if definition(name).unit == "%" else values


def _step_curves(run: RunRecord, name: str, color: int, is_parent: bool) -> Iterator[Curve]:
    """The curve of a quantity: its steps; of a long run faint behind their means; percentiles by stretches."""
    what, steps = definition(name), np.asarray(run.steps.steps)
    label = _whose(what.label.partition(", ")[2] or what.label, is_parent)  # `tower` of `gradient norm, tower`
    windows = list(_windows(len(steps)))
    if name.startswith("derived.step_time_p"):
        values, share = step_values(run, "step.step_time_s"), int(name.removesuffix("_s").rpartition("_p")[2])
        if len(steps) >= 2 * MIN_WINDOW_STEPS and not is_parent:
            yield Curve(label, _window_steps(run, windows), _by_window(values, windows, share), color)
        return
    values = step_values(run, name)
    if np.isnan(values).all():
        return
    if len(steps) <= 2 * NUM_WINDOWS or name.startswith(_SMOOTH):
        has_percentiles = name == "step.step_time_s" and len(steps) >= 2 * MIN_WINDOW_STEPS
        yield Curve(label, steps, values, color, is_parent, is_faint=has_percentiles and not is_parent)
        return
    if not (is_parent or name.startswith(_CROWDED)):
        yield Curve(label, steps, values, color, is_faint=True)
    if name != "step.step_time_s" or is_parent:
        yield Curve(label, _window_steps(run, windows), _by_window(values, windows), color, is_parent)


def _set_curves(run: RunRecord, name: str, first_color: int, is_parent: bool) -> Iterator[Curve]:
    """One curve a validation set."""
    what, key = definition(name), name.removeprefix("validation.")
    for number, (set_name, lines) in enumerate(run.validations.items()):
        label = what.label if set_name == MAIN_SET and key == "loss" else set_name
        yield from _curve_of(lines, key, _whose(label, is_parent), first_color + number, is_parent, what.unit)


def _named_curves(lines: list[dict], key: str, is_parent: bool) -> Iterator[Curve]:
    """One curve for each modality or source of a set, those with the most tokens at the newest validation."""
    newest = lines[-1].get(key)
    entries = {name: entry for name, entry in (newest or {}).items() if isinstance(entry, dict)}
    ranked = sorted(entries, key=lambda name: -(entries[name].get("tokens") or 0))[:MAX_NAMED]
    for color, name in enumerate(ranked):
        flat = [{"step": line["step"], "loss": ((line.get(key) or {}).get(name) or {}).get("loss")} for line in lines]
        yield from _curve_of(flat, "loss", _whose(name, is_parent), color, is_parent, "")


def _curve_of(lines: list[dict], key: str, label: str, color: int, is_parent: bool, unit: str) -> Iterator[Curve]:
    found = [line.get(key) for line in lines]
    values = np.array([value if isinstance(value, int | float) else np.nan for value in found], dtype=np.float64)
    if not np.isnan(values).all():
        steps = np.array([line["step"] for line in lines])
        yield Curve(label, steps, 100 * values if unit == "%" else values, color, is_parent, has_marks=True)


def _whose(label: str, is_parent: bool) -> str:
    return f"{label} (parent)" if is_parent else label


def _windows(num_steps: int) -> list[slice]:
    """Stretches of a run, as equal as they can be."""
    num = max(1, min(NUM_WINDOWS, num_steps // MIN_WINDOW_STEPS))
    edges = np.linspace(0, num_steps, num + 1).astype(int)
    return [slice(int(start), int(end)) for start, end in itertools.pairwise(edges) if end > start]


def _window_steps(run: RunRecord, windows: list[slice]) -> np.ndarray:
    """The last step of each stretch."""
    return np.array([run.steps.steps[window.stop - 1] for window in windows])


def _by_window(values: np.ndarray, windows: list[slice], percentile: int | None = None) -> np.ndarray:
    """Mean of each stretch, or a percentile; nan where it has no number."""
    finite = [part[~np.isnan(part)] for part in (values[window] for window in windows)]
    take = np.mean if percentile is None else lambda part: np.percentile(part, percentile)
    return np.array([take(part) if len(part) else np.nan for part in finite])
