"""What a run tells while it trains: `metrics.jsonl`, the line on the terminal, what trackers are told.

One rank reports, the last, which has the losses on every grid. A line of `metrics.jsonl`, one a step, has the keys of
STEP (run_folder/quantities.py, which says what each is), and `skipped`, true, where the update was left out
(bad_steps.py). What every rank tells of itself stands in `ranks.jsonl` (rank_times.py).
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from torch import Tensor

from megatron_medx.config.run import RunConfig
from megatron_medx.data.loader import RowLoader
from megatron_medx.run_folder.names import METRICS_FILE
from megatron_medx.run_folder.quantities import PARTS
from megatron_medx.training.machine import gpu_peak_flops, peak_memory_bytes
from megatron_medx.training.step import FLOPS, IMAGES, LOSS, SAMPLES_CRC, SOURCE_TOKENS, TOKENS
from megatron_medx.training.step_lines import StepLines
from megatron_medx.training.trackers.told import Trackers

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
        self.data_wait_s = 0.0
        self.rates: dict[str, float | None] = {}  # of rates.rates_now
        self.part_norms: dict[str, float | None] = {}
        self.saving_step: int | None = None  # of a save that holds training up
        self.save_time_s = 0.0  # how long the last one did
        self._loaders: list[RowLoader] = []
        self._num_steps, self._world_size = config.training.steps, config.parallel.world_size
        self._every_steps = config.log.every_steps
        self._lines = StepLines(folder / METRICS_FILE)
        self._screen = screen
        self._peak_flops = gpu_peak_flops() if self.is_reporter else None
        self.trackers = Trackers(config, folder, self.announce) if self.is_reporter else None
        self._first_step, self._started_s, self._shown_s = 0, 0.0, 0.0

    @property
    def is_reporter(self) -> bool:
        """Whether this rank is the one that tells and writes."""
        return self._screen is not None

    def watch(self, loader: RowLoader) -> None:
        """Report how long steps wait for this loader."""
        self._loaders.append(loader)

    def end_step(self, step_time_s: float) -> None:
        """A step took so long; with it ends what rows were waited for in it."""
        self.step_time_s = step_time_s
        self.data_wait_s = sum(loader.take_waited_s() for loader in self._loaders)

    def announce(self, text: str) -> None:
        """Show a line that stays, on the reporting rank."""
        if self._screen is not None:
            self._screen.write(f"\n{text}\n" if self._screen.isatty() else f"{text}\n")
            self._screen.flush()

    def step(
        self, step: int, reduced: Mapping[str, Tensor | float], grad_norm: float | None, skipped: bool = False
    ) -> None:
        """Record one finished step.

        Args:
            step: its number, from 1.
            reduced: loss and counts, of the global batch (training/step.py).
            grad_norm: global gradient norm.
            skipped: the weights were not updated.
        """
        if self._screen is None:
            return
        if not self._first_step:
            self._first_step, self._started_s = step, time.monotonic() - self.step_time_s
        line = self._line(step, reduced, grad_norm)
        if skipped:
            line["skipped"] = True
        self._lines.write(line)
        self.trackers.log_step(line)
        self._show(line)

    def close(self) -> None:
        """End the terminal's line, the file, the trackers and what reads ahead."""
        for loader in self._loaders:
            loader.close()
        self._lines.close()
        if self._screen is None:
            return
        if self._first_step and self._screen.isatty():
            self._screen.write("\n")
        self.trackers.finish()

    def _line(self, step: int, reduced: Mapping[str, Tensor | float], grad_norm: float | None) -> dict:
        loss = float(reduced[LOSS])  # 0 / 0 without trained tokens
        flops_per_s = float(reduced[FLOPS]) / self.step_time_s / self._world_size
        return {
            "step": step,
            "loss": loss if math.isfinite(loss) else None,
            "grad_norm": None if grad_norm is None else float(grad_norm),
            **{f"grad_norm_{part}": self.part_norms.get(part) for part in PARTS},
            "lr": self.rates.get("lr", 0.0),
            **{f"lr_{part}": self.rates.get(f"lr_{part}") for part in PARTS},
            "tokens": round(float(reduced[TOKENS])),
            "images": round(float(reduced[IMAGES])),
            "source_tokens": reduced.get(SOURCE_TOKENS, {}),
            "samples_crc": round(float(reduced[SAMPLES_CRC])),
            "step_time_s": round(self.step_time_s, 6),
            "data_wait_s": round(self.data_wait_s, 6),
            "model_tflops_per_s": flops_per_s / 1e12,
            "mfu": flops_per_s / self._peak_flops if self._peak_flops else None,
            "memory_gb": round(peak_memory_bytes() / 1e9, 6),
        }

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
