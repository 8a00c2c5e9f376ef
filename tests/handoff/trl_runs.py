"""The training runs in TRL that several tests look at: the examples, in this process, each once a session."""

import functools
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from second_environment import REPOSITORY

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

COLD_START = ("--steps", "75", "--learning-rate", "1e-2")
"""After these steps the loss of a dense export is 0.04, of which nearly all is which half to zoom into."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that has ended."""

    start: Path
    """The directory it started from."""
    saved: Path
    """What it saved."""
    steps: list[dict]
    """TRL's log, a step each."""
    batches: list[dict]
    """What the loss was computed from, a step each."""


@functools.cache
def train(example: str, start: Path, *words: str) -> Trained:
    """Run `examples/NAME.py START --out ...`; it saves beside START."""
    import trl

    if str(REPOSITORY / "examples") not in sys.path:
        sys.path.insert(0, str(REPOSITORY / "examples"))
    saved, batches = start.with_name(f"{start.name}_{example}"), []
    kind = trl.GRPOTrainer if example.startswith("grpo") else trl.SFTTrainer
    compute_loss = kind.compute_loss

    def record(trainer, model, inputs, *args, **options):
        batches.append(dict(inputs))
        return compute_loss(trainer, model, inputs, *args, **options)

    with mock.patch.object(kind, "compute_loss", record):
        trainer = importlib.import_module(example).main([str(start), "--out", str(saved), *words])
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return Trained(start, saved, steps, batches)


def zoomed(export: Path) -> Trained:
    """GRPO with the zoom tool, on what a cold start made of an export."""
    return train("grpo_zoom_tool", train("sft_tool_calls_trl", export, *COLD_START).saved, "--steps", "2")
