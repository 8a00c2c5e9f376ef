"""What the precision gate makes of two trials: the gap of their losses, its record, its picture, its refusal.

Keys of `precision_gate.json`:

    precision      section of the run
    steps          of each trial
    window_steps   the last of them, which are averaged
    passed         whether the gap is within the bound
    gap            |average of the judged trial / average of the reference - 1|; null where a loss is missing
    max_gap        the bound
    why            the verdict in words
    trials         of each by name, the judged one first: `average`, and `loss` of every step (nats a token; null where
                   it was not finite or no token was trained)
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_medx.config.precision import gate_window
from megatron_medx.config.run import PrecisionSection
from megatron_medx.errors import ConfigError
from megatron_medx.run_folder.names import GATE, GATE_PICTURE


def judge(metrics: Mapping[str, Sequence[dict]], steps: int, max_gap: float) -> dict:
    """The record of two trials, without `precision`.

    Args:
        metrics: name -> lines of metrics.jsonl, of the trial that is judged and of the one that it is measured by.
        steps: that each was to make.
        max_gap: largest gap that passes.

    Raises:
        ConfigError: a trial ended before its last step.
    """
    for name, lines in metrics.items():
        if len(lines) != steps:
            raise ConfigError(
                f"the precision gate's trial in {name} made {len(lines)} of {steps} steps",
                "all of them",
                "remove what ends a run early, such as megatron.exit_duration_in_mins; its logs are below "
                f"precision_gate/{name} in the run folder",
            )
    (name, lines), (reference, other_lines) = metrics.items()
    rows = [[line["samples_crc"] for line in one] for one in (lines, other_lines)]
    assert rows[0] == rows[1], "the trials of the precision gate have seen other rows"
    losses = {one: [line["loss"] for line in metrics[one]] for one in (name, reference)}
    window = gate_window(steps)
    pairs = list(zip(losses[name][-window:], losses[reference][-window:], strict=True))
    averages, gap, why = {name: None, reference: None}, None, _missing(pairs, (name, reference), steps)
    if not why:
        trained = [pair for pair in pairs if None not in pair]  # else no token was trained, in either
        for one, column in zip(averages, zip(*trained, strict=True), strict=True):
            averages[one] = statistics.fmean(column)
        gap = abs(averages[name] / averages[reference] - 1)
        why = f"loss {averages[name]:.4f} in {name}, {averages[reference]:.4f} in {reference}, {gap:.3%} apart"
        why += f", averaged over the last {window:,} of {steps:,} steps"
    return {
        "steps": steps,
        "window_steps": window,
        "passed": gap is not None and gap <= max_gap,
        "gap": gap,
        "max_gap": max_gap,
        "why": why,
        "trials": {one: {"average": averages[one], "loss": losses[one]} for one in averages},
    }


def _missing(pairs: Sequence[tuple], names: tuple[str, str], steps: int) -> str:
    """Why the last steps cannot be compared, in words; empty where they can."""
    first = steps - len(pairs) + 1
    for step, pair in enumerate(pairs, start=first):
        for loss, other, name in zip(pair, pair[::-1], names, strict=True):
            if loss is None and other is not None:
                return f"no finite loss in {name} at step {step:,}"
    return "" if any(None not in pair for pair in pairs) else f"no trained token in steps {first:,} to {steps:,}"


def refuse(record: dict, folder: Path, precision: PrecisionSection) -> None:
    """Refuse a run that has not passed.

    Args:
        record: from `judge`.
        folder: of the run.
        precision: of the run.

    Raises:
        ConfigError: it has not.
    """
    if record["passed"]:
        return
    more = {
        "delayed": "precision.fp8=tensorwise",
        "tensorwise": "precision.fp8=blockwise, or raise precision.bf16_first_layers and precision.bf16_last_layers",
        "blockwise": "higher precision.bf16_first_layers and precision.bf16_last_layers",
    }
    tower = "precision.fp8_vision=false, " if precision.fp8_vision else ""
    raise ConfigError(
        f"precision gate: {record['why']}",
        f"a gap of at most precision.gate_max_gap {record['max_gap']:.3%}",
        f"look at {folder / GATE_PICTURE} and the logs below {folder / GATE}; try {tower}"
        f"{more.get(precision.fp8, 'another precision')}; or train in bf16: precision.fp8=none precision.gate_steps=0",
    )


def draw(record: dict, path: Path) -> None:
    """Picture of both losses over the steps, and below of their gap beside the bound.

    Args:
        record: from `judge`.
        path: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (losses, gaps) = plt.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=(3, 2))
    columns = {name: [_number(loss) for loss in trial["loss"]] for name, trial in record["trials"].items()}
    steps = range(1, record["steps"] + 1)
    for (name, column), color, style in zip(columns.items(), ("#c2571a", "#1f5fa8"), ("-", "--"), strict=True):
        losses.plot(steps, column, style, linewidth=1.2, color=color, label=name)
    judged, reference = columns.values()
    window, bound = record["window_steps"], 100 * record["max_gap"]
    gaps.plot(steps, _running_gaps(judged, reference, window), linewidth=1.2, color="#444444")
    gaps.axhspan(-bound, bound, color="#2b8a3e", alpha=0.12)
    gaps.axhline(0, linewidth=0.6, color="#444444")
    losses.axvspan(record["steps"] - window + 0.5, record["steps"] + 0.5, color="#444444", alpha=0.08)
    losses.set_ylabel("loss (nats / token)")
    gaps.set_ylabel(f"gap, last {window:,} steps (%)")
    gaps.set_xlabel("step")
    losses.legend(frameon=False)
    losses.set_title(f"{'passed' if record['passed'] else 'NOT passed'}: {record['why']}", loc="left", fontsize=9)
    for axis in (losses, gaps):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels((losses, gaps))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _number(loss: float | None) -> float:
    return math.nan if loss is None else loss


def _running_gaps(judged: Sequence[float], reference: Sequence[float], window: int) -> list[float]:
    """Gap in percent, with its sign, of the averages over up to `window` steps that end at each step."""
    spans = [slice(max(0, end - window), end) for end in range(1, len(judged) + 1)]
    return [100 * (math.fsum(judged[span]) / math.fsum(reference[span]) - 1) for span in spans]
