"""A step whose loss or gradient is NaN or infinite: found before the optimizer's update, by all ranks together.

Such a step never reaches the weights. `training.on_bad_loss` says what follows: `stop` ends the run with the last
checkpoint as it was; `skip` leaves the update out, the rows of the step stay consumed and the learning rate schedule
stays where it is. Either way a line goes to `bad_steps.jsonl` in the run folder:

    step         the step, from 1
    what         `loss` where the loss of some microbatch is bad, `gradient` where all losses are finite
    loss         the step's loss; "nan", "inf" or "-inf" in quotes, null without trained tokens
    sample_ids   samples of the bad microbatches; all of the step where only the gradient is bad

What it costs a good step: one pass over this rank's share of the gradients, one all-reduce of two numbers and one wait
of the host for the device.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_medx.config.checkpoint_folders import CHECKPOINTS, RUN_FILE, TRACKER_FILE
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import DataError
from megatron_medx.run_folder.names import BAD_STEPS_FILE
from megatron_medx.training.loss import StepLosses
from megatron_medx.training.monitor import StepMonitor

SHOWN_SAMPLES = 8
"""Sample ids in a message; the file has all of them."""


class BadStepGuard:
    """Decides, between backward pass and update, whether a step is sound.

    Args:
        config: the run.
        folder: run folder.
        losses: what the running step's microbatches left on this rank.
        monitor: where the reporting rank tells of a skipped step.
    """

    def __init__(self, config: RunConfig, folder: Path, losses: StepLosses, monitor: StepMonitor):
        self._stops = config.training.on_bad_loss == "stop"
        self._folder, self._losses, self._monitor = folder, losses, monitor
        self._step = 0
        self._watched: Any = None

    def start_step(self, step: int, optimizer: Any) -> None:
        """Forget the step before; from now on `optimizer` asks before it updates.

        Args:
            step: its number, from 1.
            optimizer: Megatron's outermost one, whose `prepare_grads` calls those of all optimizers inside it and
                says whether to leave the update out.
        """
        self._step = step
        self._losses.start_step()
        if self._watched is optimizer:
            return
        self._watched, original = optimizer, optimizer.prepare_grads

        def prepare_grads() -> bool:
            found_inf = original()
            return self.must_skip(optimizer.get_parameters()) or found_inf

        optimizer.prepare_grads = prepare_grads

    def must_skip(self, parameters: Iterable[torch.nn.Parameter]) -> bool:
        """Whether the update is left out, the same answer on every rank. Collective over all ranks.

        Args:
            parameters: of the optimizer, with the gradients that it is about to use.

        Raises:
            DataError: the step is bad and `training.on_bad_loss` is `stop`; on every rank.
        """
        num_bad_losses, squared_norm = self._over_all_ranks(parameters)
        if num_bad_losses == 0 and math.isfinite(squared_norm):
            return False
        record = self._record("loss" if num_bad_losses else "gradient")
        if self._monitor.is_reporter:
            with open(self._folder / BAD_STEPS_FILE, "a") as file:
                file.write(json.dumps(record) + "\n")
        if self._stops:
            raise bad_step_error(record, self._folder)
        self._monitor.announce(f"skipped {describe(record)}")
        return True

    def _over_all_ranks(self, parameters: Iterable[torch.nn.Parameter]) -> list[float]:
        """Number of losses that are not finite, sum of all squared gradients in float32.

        A sum is finite only if every part is. The squared norm, because a gradient whose norm overflows cannot be
        clipped: Megatron would scale it to zero. Replicas count several times, which changes neither answer.
        """
        device = torch.cuda.current_device()
        losses = [entry.loss_sum for entry in self._losses.with_loss()]
        num_bad = (~torch.stack(losses).isfinite()).sum() if losses else torch.zeros((), device=device)
        norm = torch.nn.utils.get_total_norm(gradients_of(parameters)).to(device)
        answer = torch.stack([num_bad.float(), norm.float().square()])
        dist.all_reduce(answer)
        return answer.tolist()

    def _record(self, what: str) -> dict:
        """The line of `bad_steps.jsonl`, the same on every rank. Collective over all ranks."""
        mine = [
            (
                list(entry.sample_ids),
                *(None if part is None else part.item() for part in (entry.loss_sum, entry.denominator)),
            )
            for entry in self._losses.microbatches
        ]
        ranks: list = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        microbatches = [microbatch for rank in ranks for microbatch in rank]
        return {
            "step": self._step,
            "what": what,
            "loss": step_loss(microbatches),
            "sample_ids": blamed_samples(microbatches, what),
        }


def gradients_of(parameters: Iterable[torch.nn.Parameter]) -> list[Tensor]:
    """The gradients that an optimizer would use; Megatron's precision-aware one keeps them as `decoupled_grad`."""
    found = (p.grad if p.grad is not None else getattr(p, "decoupled_grad", None) for p in parameters)
    return [gradient for gradient in found if gradient is not None]


Gathered = tuple[list[str], float | None, float | None]
"""Sample ids, loss sum and denominator of a microbatch; None on stages that compute no loss."""


def step_loss(microbatches: Sequence[Gathered]) -> float | str | None:
    """The step's loss; in words where JSON has no number for it, None without trained tokens.

    Tensor-parallel ranks state the same microbatch once each, in numerator and denominator alike.
    """
    summed = [(loss, denominator) for _, loss, denominator in microbatches if loss is not None]
    total, denominator = (sum(parts) for parts in zip(*summed, strict=True))
    if not math.isfinite(total):
        return str(total)
    return total / denominator if denominator else None


def blamed_samples(microbatches: Sequence[Gathered], what: str) -> list[str]:
    """Each sample once: of microbatches with a bad loss, or of all where only the gradient is bad."""
    blamed = (
        ids for ids, loss, _ in microbatches if what == "gradient" or (loss is not None and not math.isfinite(loss))
    )
    return list(dict.fromkeys(sample_id for ids in blamed for sample_id in ids))


def describe(record: dict) -> str:
    """One line about a bad step, for people."""
    ids = record["sample_ids"]
    more = f" and {len(ids) - SHOWN_SAMPLES} more ({BAD_STEPS_FILE})" if len(ids) > SHOWN_SAMPLES else ""
    found = f"loss {record['loss']}" if record["what"] == "loss" else f"gradient not finite, loss {record['loss']}"
    return f"step {record['step']}: {found} in samples {', '.join(ids[:SHOWN_SAMPLES])}{more}"


def bad_step_error(record: dict, folder: Path) -> DataError:
    """What a run that stops at a bad step says; names the checkpoint that it can go on from."""
    tracker = folder / CHECKPOINTS / TRACKER_FILE
    if tracker.exists():
        again = (
            f"medx train {folder / RUN_FILE} --resume goes on from the checkpoint of step {tracker.read_text().strip()}"
        )
    else:
        again = "no checkpoint was saved before this step, start again"
    return DataError(
        describe(record),
        "losses and gradients that are finite; nothing of this step was applied or saved",
        "look at these samples, or lower optimizer.lr if the losses before were rising; training.on_bad_loss=skip "
        f"leaves such steps out. {again}",
    )
