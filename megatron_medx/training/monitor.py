"""What a run tells while it trains: `metrics.jsonl`, the line on the terminal.

One rank reports, the last, which has the losses on every grid. Keys of a line of `metrics.jsonl`, one line a step:

    step           optimizer steps done, this one included
    loss           cross entropy of the step, nats a token, averaged as `training.loss_average` says; null in a step
                   without trained tokens and where it is not finite (bad_steps.jsonl tells which)
    grad_norm      global norm before clipping; null in a skipped step
    lr             base learning rate of this step
    tokens         text and image tokens of the step's rows, padding not counted
    images         images in them
    samples_crc    sum of the CRC-32 of their samples' ids: equal where steps held the same samples, on whatever ranks
    step_time_s    seconds in the step; loading included, saving not
    data_wait_s    of these, seconds in which this rank waited for rows
    model_tflops_per_s   model TFLOP/s per rank, tower counted (config/flops.py)
    skipped        true where the update was left out (bad_steps.py); only such lines have it
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from torch import Tensor

from megatron_medx.config.run import RunConfig
from megatron_medx.data.loader import RowLoader
from megatron_medx.run_folder.names import METRICS_FILE
from megatron_medx.training.step import FLOPS, IMAGES, LOSS, SAMPLES_CRC, TOKENS

QUIET_S = 5.0
"""Seconds between lines where the terminal is not interactive."""


class StepMonitor:
    """Writes one line a step and shows progress; does nothing on ranks that do not report.

    Args:
        config: the run.
        folder: run folder.
        screen: where people look; None on ranks that do not report.
    """

    def __init__(self, config: RunConfig, folder: Path, screen: TextIO | None):
        self.step_time_s = 0.0
        self.saving_step: int | None = None  # of a save that holds training up
        self.save_time_s = 0.0  # how long the last one did
        self._loaders: list[RowLoader] = []
        self.learning_rate = 0.0
        self._num_steps, self._world_size = config.training.steps, config.parallel.world_size
        self._every_steps = config.log.every_steps
        self._path = folder / METRICS_FILE
        self._screen = screen
        self._file: TextIO | None = None
        self._first_step, self._started_s, self._shown_s = 0, 0.0, 0.0

    @property
    def is_reporter(self) -> bool:
        """Whether this rank is the one that tells and writes."""
        return self._screen is not None

    def watch(self, loader: RowLoader) -> None:
        """Report how long steps wait for this loader."""
        self._loaders.append(loader)

    def announce(self, text: str) -> None:
        """Show a line that stays, on the reporting rank."""
        if self._screen is not None:
            self._screen.write(f"\n{text}\n" if self._screen.isatty() else f"{text}\n")
            self._screen.flush()

    def step(self, step: int, reduced: dict[str, Tensor], grad_norm: float | None, skipped: bool = False) -> None:
        """Record one finished step.

        Args:
            step: its number, from 1.
            reduced: loss and counts, reduced over the global batch (training/step.py).
            grad_norm: global gradient norm.
            skipped: the weights were not updated.
        """
        if self._screen is None:
            return
        if self._file is None:
            self._open(step)
        loss = float(reduced[LOSS])  # 0 / 0 without trained tokens
        line = {
            "step": step,
            "loss": loss if math.isfinite(loss) else None,
            "grad_norm": None if grad_norm is None else float(grad_norm),
            "lr": self.learning_rate,
            "tokens": round(float(reduced[TOKENS])),
            "images": round(float(reduced[IMAGES])),
            "samples_crc": round(float(reduced[SAMPLES_CRC])),
            "step_time_s": round(self.step_time_s, 6),
            "data_wait_s": round(sum(loader.take_waited_s() for loader in self._loaders), 6),
            "model_tflops_per_s": float(reduced[FLOPS]) / self.step_time_s / self._world_size / 1e12,
        }
        if skipped:
            line["skipped"] = True
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._show(line)

    def close(self) -> None:
        """End the terminal's line, the file and what reads ahead."""
        for loader in self._loaders:
            loader.close()
        if self._file is not None:
            self._file.close()
            if self._screen.isatty():
                self._screen.write("\n")

    def _open(self, first_step: int) -> None:
        """Append to the metrics of the run so far; steps that a resume repeats are dropped."""
        kept = [line for line in read_metrics(self._path) if line["step"] < first_step]
        self._file = open(self._path, "w")
        self._file.writelines(json.dumps(line) + "\n" for line in kept)
        self._first_step, self._started_s = first_step, time.monotonic() - self.step_time_s

    def _show(self, line: dict) -> None:
        now_s, interactive, last = time.monotonic(), self._screen.isatty(), line["step"] == self._num_steps
        is_due = now_s - self._shown_s >= QUIET_S and line["step"] % self._every_steps == 0
        if not (interactive or last or is_due):
            return
        self._shown_s = now_s
        done = line["step"] - self._first_step + 1
        left_s = (now_s - self._started_s) / done * (self._num_steps - line["step"])
        norm = line["grad_norm"] or 0.0
        loss = "none" if line["loss"] is None else f"{line['loss']:.4f}"
        text = (
            f"step {line['step']}/{self._num_steps}  loss {loss}  grad norm {norm:.2f}  "
            f"lr {line['lr']:.2e}  {line['step_time_s']:.2f} s/step  "
            f"{line['tokens'] / line['step_time_s']:,.0f} tokens/s  {int(left_s // 60)}:{int(left_s % 60):02d} left"
        )
        self._screen.write(f"\r{text:<110}" if interactive else f"{text}\n")
        self._screen.flush()


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file; a last line that was cut off while being written is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


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
    if finite := [line for line in validations if line["loss"] is not None]:
        points = zip(*((line["step"], line["loss"]) for line in finite), strict=True)
        axes[0].plot(*points, "o-", markersize=4, linewidth=0.8, color="#c2571a", label="validation")
        axes[0].legend(frameon=False)
    losses = [line["loss"] for line in metrics if line["loss"] is not None]
    said = f"loss {losses[0]:.3f} to {losses[-1]:.3f}" if losses else "no loss"
    axes[0].set_title(f"{path.parent.name}: {said}", loc="left")
    axes[-1].set_xlabel("step")
    figure.align_ylabels(axes)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
