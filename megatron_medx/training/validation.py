"""The loss on rows that are not trained on: which rows a rank takes, and what is told of them.

Megatron's own loop evaluates: the model in eval mode, no gradients, the forward step and the grid of training. Every
validation goes through the same rows from the first on, so nothing of it is kept for a resume, and no random number is
drawn. The loss is one average over all of them, as `training.loss_average` names it, as if they were a single step's.

Keys of a line of `validation.jsonl`, one line a validation:

    step          optimizer steps done
    loss          nats a token; null where it is not finite
    rows          looked at
    tokens        text and image tokens in them, padding not counted
    samples_crc   sum of the CRC-32 of their samples' ids: equal where the same samples were looked at
    duration_s    seconds
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import mpu

from megatron_medx.config.run import RunConfig
from megatron_medx.config.validation import VALIDATION_FILE
from megatron_medx.data.loader import RowLoader
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.training.loss import StepLosses
from megatron_medx.training.monitor import StepMonitor, read_metrics


def endless_passes(start: Callable[[Iterator[int]], RowLoader], rows: list[int]) -> Iterator[Microbatch]:
    """The same rows again and again; between two passes nothing is read ahead, and no worker runs.

    Args:
        start: makes the loader of one pass.
        rows: of this rank, at least one.
    """
    while True:
        loader = start(iter(rows))
        try:
            for _ in rows[1:]:
                yield next(loader)
            last = next(loader)
        finally:
            loader.close()
        yield last


class ValidationLog:
    """Sums up what one validation found, over all ranks, and tells it.

    Args:
        config: the run.
        folder: run folder.
        monitor: knows whether this rank reports, and where people look.
    """

    def __init__(self, config: RunConfig, folder: Path, monitor: StepMonitor):
        self._rows = config.training.validate_rows
        self._path, self._monitor = folder / VALIDATION_FILE, monitor
        self._last_step: int | None = None

    def is_done(self, step: int) -> bool:
        """Whether the weights after this step were validated last: Megatron asks again after the last step."""
        return self._last_step == step

    def record(self, step: int, losses: StepLosses, duration_s: float) -> None:
        """Add up the microbatches of a validation; the reporting rank writes and shows the line.

        Collective over the data- and context-parallel ranks of the last stage. Nothing is recorded of a validation
        that Megatron broke off because the run's time was up.
        """
        self._last_step = step
        entries = losses.with_loss()
        if len(entries) * mpu.get_data_parallel_world_size() < self._rows:
            return  # another stage, or broken off
        sums = [
            torch.stack([entry.loss_sum for entry in entries]).double().sum(),
            torch.stack([entry.denominator for entry in entries]).double().sum(),
            sum(entry.num_tokens for entry in entries),
            sum(zlib.crc32(sample_id.encode()) for entry in entries for sample_id in entry.sample_ids),
        ]
        total = torch.tensor(sums, dtype=torch.float64, device=entries[0].loss_sum.device)
        dist.all_reduce(total, group=mpu.get_data_parallel_group(with_context_parallel=True))
        if self._monitor.is_reporter:
            self._tell(step, total.tolist(), duration_s)

    def _tell(self, step: int, total: list[float], duration_s: float) -> None:
        loss_sum, denominator, *counts = total
        # ranks that share a row's tokens have counted the whole row each
        tokens, samples_crc = (round(count / mpu.get_context_parallel_world_size()) for count in counts)
        loss = loss_sum / denominator if denominator else math.nan
        line = {
            "step": step,
            "loss": loss if math.isfinite(loss) else None,
            "rows": self._rows,
            "tokens": tokens,
            "samples_crc": samples_crc,
            "duration_s": round(duration_s, 3),
        }
        # a resume repeats steps: what was told of them before is dropped
        lines = [former for former in read_metrics(self._path) if former["step"] < step] + [line]
        draft = self._path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(one) + "\n" for one in lines))
        draft.replace(self._path)
        said = "not finite" if line["loss"] is None else f"{loss:.4f}"
        self._monitor.announce(
            f"step {step}: validation loss {said} over {self._rows} rows, {tokens:,} tokens, in {duration_s:.1f} s"
        )
