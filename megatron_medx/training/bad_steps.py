"""A step whose loss or gradient is not to be trusted: found before the optimizer's update, by all ranks together.

Bad is a loss or gradient that is NaN or infinite and, with `survival.spike_factor`, a loss far above those of the steps
before (loss_spikes.py). Such a step never reaches the weights. `training.on_bad_loss` says what follows: `stop` ends
the run with the last checkpoint as it was; `skip` leaves the update out, the rows of the step stay consumed and the
learning rate schedule stays where it is; `rollback` does the same until bad steps repeat (rollback.py). In any case
there is an event `bad_step`, and a line goes to `bad_steps.jsonl` in the run folder:

    step         the step, from 1
    what         `loss` where the loss of some microbatch is not finite, `gradient` where all losses are,
                 `spike` where the gradient is finite, too
    loss         the step's loss; "nan", "inf" or "-inf" in quotes, null without trained tokens
    sample_ids   samples of the microbatches whose loss is not finite; all of the step otherwise
    median       of the losses before; only of a spike

What it costs a good step: one pass over this rank's share of the gradients, one all-reduce of four numbers and one wait
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

from megatron_medx.config.run import RunConfig
from megatron_medx.errors import DataError
from megatron_medx.run_folder import events
from megatron_medx.run_folder.names import BAD_STEPS_FILE, METRICS_FILE
from megatron_medx.training.loss import StepLosses
from megatron_medx.training.loss_spikes import LossSpikes, losses_before
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.rollback import Rollback, how_to_go_on
from megatron_medx.training.step_lines import read_metrics

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
        policy = config.training.on_bad_loss
        self._stops = policy == "stop"
        self._rollback = Rollback(config, folder, monitor.is_reporter) if policy == "rollback" else None
        self._spikes = LossSpikes(config.survival.spike_factor)
        self._folder, self._losses, self._monitor = folder, losses, monitor
        self._step = self._position = 0
        self._watched: Any = None

    def start_step(self, step: int, position: int, optimizer: Any) -> None:
        """Forget the step before; from now on `optimizer` asks before it updates.

        Args:
            step: its number, from 1.
            position: rows that all ranks had consumed before it.
            optimizer: Megatron's outermost one, whose `prepare_grads` calls those of all optimizers inside it and
                says whether to leave the update out.
        """
        if not self._step:
            self._remember_losses(step)
        self._step, self._position = step, position
        self._losses.start_step()
        if self._watched is optimizer:
            return
        self._watched, original = optimizer, optimizer.prepare_grads

        def prepare_grads() -> bool:
            found_inf = original()
            return self.must_skip(optimizer.get_parameters()) or found_inf

        optimizer.prepare_grads = prepare_grads

    def _remember_losses(self, first_step: int) -> None:
        """Those of the run before this launch, the same on every rank. Collective over all ranks.

        The reporting rank alone reads the file, for it soon writes it anew.
        """
        if not self._spikes.factor:
            return
        known: list[list[float]] = [[]]
        if self._monitor.is_reporter:
            known = [losses_before(read_metrics(self._folder / METRICS_FILE), first_step)]
        dist.broadcast_object_list(known, src=dist.get_world_size() - 1)
        self._spikes.remember(known[0])

    def must_skip(self, parameters: Iterable[torch.nn.Parameter]) -> bool:
        """Whether the update is left out, the same answer on every rank. Collective over all ranks.

        Args:
            parameters: of the optimizer, with the gradients that it is about to use.

        Raises:
            DataError: the step is bad and `training.on_bad_loss` is `stop`, or the run was rolled back too often; on
                every rank.
            StartAgain: the run is rolled back; on every rank.
        """
        num_bad_losses, squared_norm, loss_sum, denominator = self._over_all_ranks(parameters)
        loss = loss_sum / denominator if denominator else None
        if num_bad_losses:
            return self._leave_out("loss")
        if not math.isfinite(squared_norm):
            return self._leave_out("gradient")
        if (median := self._spikes.median_below(loss)) is not None:
            return self._leave_out("spike", median=median)
        self._spikes.remember([loss])
        if self._rollback is not None:
            self._rollback.good_step()
        return False

    def _leave_out(self, what: str, **more: float) -> bool:
        """Tell of a bad step, then do what the policy says; True where that leaves its update out."""
        record = self._record(what) | more
        if self._monitor.is_reporter:
            with open(self._folder / BAD_STEPS_FILE, "a") as file:
                file.write(json.dumps(record) + "\n")
            facts = {key: record[key] for key in ("step", "what", "loss")}
            events.append(self._folder, "bad_step", **facts, applied=False)
        if self._stops:
            raise bad_step_error(record, self._folder)
        self._monitor.announce(f"skipped {describe(record)}")
        if self._rollback is not None:
            self._rollback.bad_step(self._step, self._position, describe(record))
        return True

    def _over_all_ranks(self, parameters: Iterable[torch.nn.Parameter]) -> list[float]:
        """Number of losses that are not finite, sum of all squared gradients in float32, loss sum, denominator.

        A sum is finite only if every part is. The squared norm, because a gradient whose norm overflows cannot be
        clipped: Megatron would scale it to zero. Replicas count several times, which changes neither that answer nor
        the quotient of the last two.
        """
        device = torch.cuda.current_device()
        losses = [entry.loss_sum for entry in self._losses.with_loss()]
        sums = torch.stack(losses).double() if losses else torch.zeros(1, dtype=torch.float64, device=device)
        norm = torch.nn.utils.get_total_norm(gradients_of(parameters)).to(device)
        num_bad, denominator = (~sums.isfinite()).sum().double(), self._losses.denominator(device)
        answer = torch.stack([num_bad, norm.float().square().double(), sums.sum(), denominator])
        dist.all_reduce(answer)
        answer[1] = answer[1].float()  # above 3.4e38 it is infinite, as Megatron's sum over ranks would be
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
    """Each sample once: of microbatches whose loss is not finite, or of all where every loss is."""
    blamed = (ids for ids, loss, _ in microbatches if what != "loss" or (loss is not None and not math.isfinite(loss)))
    return list(dict.fromkeys(sample_id for ids in blamed for sample_id in ids))


def describe(record: dict) -> str:
    """One line about a bad step, for people."""
    ids, loss = record["sample_ids"], record["loss"]
    more = f" and {len(ids) - SHOWN_SAMPLES} more ({BAD_STEPS_FILE})" if len(ids) > SHOWN_SAMPLES else ""
    found = {
        "loss": f"loss {loss}",
        "gradient": f"gradient not finite, loss {loss}",
    }
    if record["what"] == "spike":
        found["spike"] = f"loss {loss:.4g} where the median before is {record['median']:.4g}"
    return f"step {record['step']}: {found[record['what']]} in samples {', '.join(ids[:SHOWN_SAMPLES])}{more}"


def bad_step_error(record: dict, folder: Path) -> DataError:
    """What a run that stops at a bad step says; names the checkpoint that it can go on from."""
    return DataError(
        describe(record),
        "losses and gradients that are finite; nothing of this step was applied or saved",
        "look at these samples, or lower optimizer.lr if the losses before were rising; training.on_bad_loss=skip "
        f"leaves such steps out. {how_to_go_on(folder)}",
    )
