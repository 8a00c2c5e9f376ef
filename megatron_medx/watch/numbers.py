"""Which numbers `medx watch` shows, in which order of importance, and how each is taken and written.

Every one is a row of run_folder/quantities.py, which has its name, unit and meaning. Where a screen is too small, the
last rows of NUMBERS are left out first.
"""

from collections.abc import Callable
from dataclasses import dataclass

from megatron_medx.run_folder.quantities import DERIVED, MAIN_SET, PARTS, STEP, VALIDATION, Quantity
from megatron_medx.status.words import duration
from megatron_medx.watch.watched_run import WatchedRun

Texts = dict[str, str]
"""What a run has of a number, without its unit: by validation set or source, of a number that there is once by ""."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number on screen."""

    quantity: Quantity
    texts: Callable[[WatchedRun], Texts]
    """Nothing where a run does not have it, or nothing to say."""


@dataclass(frozen=True, slots=True)
class Row:
    """A number of all runs on screen."""

    label: str
    unit: str
    texts: list[str]
    """One a run; empty where it has none."""


def _step(key: str, pattern: str, take: str = "newest", scale: float = 1.0) -> Number:
    """Of metrics.jsonl: the `newest` value, or the `median` of the last steps."""

    def texts(run: WatchedRun) -> Texts:
        value = getattr(run, take)(key)
        return {} if value is None else {"": pattern.format(value * scale)}

    return Number(STEP[key], texts)


def _by_part(key: str, pattern: str) -> list[Number]:
    """Of metrics.jsonl, for each part of the network; nothing where all parts have the value of the whole."""

    def of_part(part_key: str) -> Number:
        def texts(run: WatchedRun) -> Texts:
            value, whole = run.newest(part_key), run.newest(key)
            others = [run.newest(f"{key}_{part}") for part in PARTS]
            is_told = value is not None and any(other not in (None, whole) for other in others)
            return {"": pattern.format(value)} if is_told else {}

        return Number(STEP[part_key], texts)

    return [of_part(f"{key}_{part}") for part in PARTS]


def _by_set(key: str, pattern: str, scale: float = 1.0) -> Number:
    """Of the newest validation of each set."""

    def texts(run: WatchedRun) -> Texts:
        newest = {name: lines[-1].get(key) for name, lines in run.validations.sets.items() if lines}
        return {name: pattern.format(value * scale) for name, value in newest.items() if isinstance(value, int | float)}

    return Number(VALIDATION[key], texts)


def _derived(key: str, text: Callable[[WatchedRun], str | None]) -> Number:
    return Number(DERIVED[key], lambda run: {} if (found := text(run)) is None else {"": found})


def _speed(key: str, pattern: str, scale: float = 1.0) -> Callable[[WatchedRun], str | None]:
    """What `medx status` says of the speed, too."""

    def text(run: WatchedRun) -> str | None:
        speed = run.report and run.report["speed"]
        return None if not speed or speed[key] is None else pattern.format(speed[key] * scale)

    return text


def _percentile(percent: int) -> Number:
    def text(run: WatchedRun) -> str | None:
        value = run.percentile("step_time_s", percent)
        return None if value is None else f"{value:.3g}"

    return _derived(f"step_time_p{percent}_s", text)


def _tflops(run: WatchedRun) -> Texts:
    """Where MFU is not known."""
    value = run.median("model_tflops_per_s")
    return {} if value is None or run.median("mfu") is not None else {"": f"{value:.3g}"}


def _slowest_rank(run: WatchedRun) -> str | None:
    found = run.slowest_rank()
    return None if found is None else f"{found[0]}, {found[1]:+.3g} s"


def _mixture(run: WatchedRun) -> Texts:
    texts = {}
    for source, share in run.mixture().items():
        planned = run.planned.get(source)
        texts[source] = f"{100 * share:.1f}" + ("" if planned is None else f", plan {100 * planned:.1f}")
    return texts


def _left(run: WatchedRun) -> str | None:
    left = run.report and run.report["left"]
    return duration(left["time_s"]) if left else None


NUMBERS: tuple[Number, ...] = (
    _derived("left_s", _left),
    _step("loss", "{:.4f}"),
    _by_set("loss", "{:.4f}"),
    _derived("tokens_per_s", _speed("tokens_per_s", "{:,.0f}")),
    _step("mfu", "{:.1f}", "median", 100),
    Number(STEP["model_tflops_per_s"], _tflops),
    _derived("data_wait_share", _speed("data_wait_share", "{:.2f}", 100)),
    *(_percentile(percent) for percent in (50, 90, 99)),
    _derived("slowest_rank", _slowest_rank),
    _step("grad_norm", "{:.3g}"),
    *_by_part("grad_norm", "{:.3g}"),
    _step("lr", "{:.3g}"),
    *_by_part("lr", "{:.3g}"),
    _step("memory_gb", "{:.2f}"),
    _derived("restarts", lambda run: f"{max(0, len(run.report['launches']) - 1)}" if run.report else None),
    Number(DERIVED["mixture_share"], _mixture),
    _by_set("accuracy", "{:.1f}", 100),
    _by_set("perplexity", "{:.3f}"),
    _by_set("bits_per_byte", "{:.4f}"),
)
"""The most important first."""


def rows(runs: list[WatchedRun]) -> list[Row]:
    """The numbers that any of the runs has, the most important first.

    Sets and sources of the same name stand in one row.
    """
    found = []
    for number in NUMBERS:
        texts = [number.texts(run) for run in runs]
        for name in dict.fromkeys(name for of_run in texts for name in of_run):
            label = f"{number.quantity.label}, {name}" if name not in ("", MAIN_SET) else number.quantity.label
            found.append(Row(label, _unit(number.quantity), [of_run.get(name, "") for of_run in texts]))
    return found


def _unit(quantity: Quantity) -> str:
    """Behind a time that is written in words, and behind launches, there stands none."""
    return "" if quantity in (DERIVED["left_s"], DERIVED["restarts"]) else quantity.unit
