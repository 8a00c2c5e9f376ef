"""The numbers of rows that are not trained on, and what is told of them.

Megatron's own loop evaluates: the model in eval mode, no gradients, the forward step and the grid of training. Every
validation goes through the same rows of the same sets, so nothing of it is kept for a resume, and no random number is
drawn.

Keys of a line of `validation.jsonl`, one a validation and set, are those of run_folder/quantities.py; `loss` and others
are null where they are not finite, or there is nothing to take them over.
"""

import json
from pathlib import Path

from megatron_medx.config.validation import VALIDATION_FILE
from megatron_medx.training.loss import StepLosses
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.sample_losses import SampleLoss, gather_samples
from megatron_medx.training.step_lines import read_metrics
from megatron_medx.training.validation_numbers import answer, numbers


class ValidationLog:
    """Sums up what validations found, over all ranks, and tells it.

    Args:
        folder: run folder.
        monitor: knows whether this rank reports, and where people look.
    """

    def __init__(self, folder: Path, monitor: StepMonitor):
        self._path, self._monitor = folder / VALIDATION_FILE, monitor
        self._step: int | None = None
        self._lines: list[dict] = []

    def is_done(self, step: int) -> bool:
        """Whether the weights after this step were validated last: Megatron asks again after the last step."""
        return self._step == step

    def start(self, step: int) -> None:
        """A validation begins, of the weights after this step."""
        self._step, self._lines = step, []

    def record(self, name: str, num_rows: int, losses: StepLosses, duration_s: float) -> None:
        """Add up the microbatches of a set; the reporting rank writes and shows the line.

        Collective over the data- and context-parallel ranks of the last stage; elsewhere there is nothing to add.
        """
        rows = [entry.samples for entry in losses.with_loss()]
        if not rows:
            return
        samples = gather_samples(rows)
        if self._monitor.is_reporter:
            self._tell(name, num_rows, samples, duration_s)

    def _tell(self, name: str, num_rows: int, samples: list[SampleLoss], duration_s: float) -> None:
        found = numbers(samples)
        line = {"step": self._step, "set": name, "rows": num_rows, **found, "duration_s": round(duration_s, 3)}
        self._lines.append(line)
        # a resume repeats steps: what was told of them before is dropped
        kept = [former for former in read_metrics(self._path) if former["step"] < self._step]
        draft = self._path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(one) + "\n" for one in kept + self._lines))
        draft.replace(self._path)
        self._monitor.trackers.log_validation(line)
        self._monitor.announce(_sentence(line, answer(samples).num_left_out))


def _sentence(line: dict, num_left_out: int) -> str:
    """What people see of a line."""
    loss, perplexity, bits = line["loss"], line["perplexity"], line["bits_per_byte"]
    said = [f"step {line['step']}: {line['set']} loss " + ("not finite" if loss is None else f"{loss:.4f}")]
    said += [f"perplexity {perplexity:.4g}"] if perplexity is not None else []
    said += [f"{bits:.4f} bits/byte"] if bits is not None else []
    if line["num_questions"]:
        said.append(f"{line['accuracy']:.1%} of {line['num_questions']:,} questions right")
    if num_left_out:
        said.append(f"questions not counted, as their options are not all in these rows: {num_left_out:,}")
    said.append(f"{line['rows']:,} rows, {line['tokens']:,} tokens, in {line['duration_s']:.1f} s")
    return ", ".join(said)
