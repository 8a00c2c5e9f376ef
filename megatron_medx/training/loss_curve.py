"""`loss.png`: loss, gradient norm and learning rate over the steps of a run."""

import math
from collections.abc import Sequence
from pathlib import Path

from megatron_medx.config.validation import MAIN_SET


def draw_loss_curve(metrics: list[dict], path: Path, validations: Sequence[dict] = ()) -> None:
    """Picture of loss, gradient norm and learning rate over the steps of a run.

    Args:
        metrics: from `read_metrics`.
        path: PNG to write.
        validations: lines of validation.jsonl; points on the loss.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = [line["step"] for line in metrics]
    panels = (("loss", "loss (nats / token)", 3), ("grad_norm", "gradient norm", 1), ("lr", "learning rate", 1))
    figure, axes = plt.subplots(
        len(panels), 1, sharex=True, figsize=(8, 6.5), height_ratios=[height for *_, height in panels]
    )
    for axis, (key, label, _) in zip(axes, panels, strict=True):
        values = [math.nan if line[key] is None else line[key] for line in metrics]
        axis.plot(steps, values, linewidth=1.2, color="#1f5fa8")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for name, finite in _by_set(validations).items():
        points = zip(*((line["step"], line["loss"]) for line in finite), strict=True)
        axes[0].plot(*points, "o-", markersize=4, linewidth=0.8, label=name)
        axes[0].legend(frameon=False)
    losses = [line["loss"] for line in metrics if line["loss"] is not None]
    said = f"loss {losses[0]:.3f} to {losses[-1]:.3f}" if losses else "no loss"
    axes[0].set_title(f"{path.parent.name}: {said}", loc="left")
    axes[-1].set_xlabel("step")
    figure.align_ylabels(axes)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _by_set(validations: Sequence[dict]) -> dict[str, list[dict]]:
    """Lines with a loss by the name of their set."""
    found: dict[str, list[dict]] = {}
    for line in validations:
        if line["loss"] is not None:
            found.setdefault(line.get("set", MAIN_SET), []).append(line)
    return found
