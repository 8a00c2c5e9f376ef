"""How the token losses of a global batch become the loss of a step, by the three names of `training.loss_average`.

With l_si the loss of trained token i of sample s, w_si the weight of its message, n_s = sum_i w_si, and a power p by
name:

    loss = sum_s n_s^-p sum_i w_si l_si / sum_s n_s^(1-p)

n_s is the number of trained tokens where nothing else is said, for weights are 1; a token of weight 2 counts as two.
Every token gets the weight w_si n_s^-p, so the numerator is a weighted sum of token losses and the denominator the sum
of the weights: both are sums over tokens, whatever rows, microbatches or ranks the tokens lie in. Per `sample`, weights
move a sample's share between its messages and leave the share as it is. A sample whose weights are 0 does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_medx.training.sample_losses import RowSums, SampleMeter

POWERS = {"token": 0.0, "sample": 1.0, "sqrt": 0.5}
"""`training.loss_average` -> p: a sample's share grows with its trained tokens, not at all, or with their root."""


def averaging_weights(loss_weights_1S: Tensor, cu_seqlens: Tensor, average: str) -> Tensor:
    """(1, S) float32 weight of each token's loss, of a whole row: cut it over context-parallel ranks afterwards.

    Args:
        loss_weights_1S: (1, S) float32; w_si on trained tokens, 0 elsewhere.
        cu_seqlens: (N+1,) int32 where each segment starts; padding is a segment whose tokens weigh 0.
        average: a name of POWERS.
    """
    power = POWERS[average]
    if power == 0:
        return loss_weights_1S
    sums = torch.nn.functional.pad(loss_weights_1S[0].cumsum(0, dtype=torch.float64), (1, 0))
    starts = cu_seqlens.long()
    n_N = sums[starts].diff()
    factors_N = torch.where(n_N > 0, n_N.pow(-power), 0.0)
    factors_S = factors_N.repeat_interleave(starts.diff(), output_size=loss_weights_1S.shape[1])
    return (loss_weights_1S * factors_S).float()


@dataclass(slots=True)
class MicrobatchLoss:
    """What a microbatch adds to the step on this rank; the tensors stay on the device."""

    sample_ids: Sequence[str]
    """Its samples."""
    num_tokens: int = 0
    """Text and image tokens in them, padding not counted."""
    loss_sum: Tensor | None = None
    """() weighted sum of its token losses; None on stages that compute no loss."""
    denominator: Tensor | None = None
    """() float64 sum of its weights; None where `loss_sum` is."""
    counts: Sequence[float] = ()
    """What it holds, from `microbatch_counts` (training/step.py); empty in a validation."""
    samples: RowSums | None = None
    """In a validation, its losses by sample; None where `loss_sum` is."""


class StepLosses:
    """The microbatches that this rank has computed in the running step.

    `forward_step` adds them, the end of the step reads them: the denominator that gradients are divided by, and
    whether a loss is finite. With virtual stages a microbatch comes once a chunk; only the last chunk has a loss.
    """

    def __init__(self) -> None:
        self.microbatches: list[MicrobatchLoss] = []
        self.meter: SampleMeter | None = None
        """Sums up the losses of a validation by sample; None in a step."""

    def start_step(self) -> None:
        """Forget the step or the validation before."""
        self.microbatches.clear()
        self.meter = None

    def start_validation(self, meter: SampleMeter) -> None:
        """Forget the step before; what comes now is summed up by sample."""
        self.microbatches.clear()
        self.meter = meter

    def add(self, sample_ids: Sequence[str], num_tokens: int = 0) -> MicrobatchLoss:
        """The entry of the next microbatch, for the loss function to fill in."""
        entry = MicrobatchLoss(sample_ids, num_tokens)
        self.microbatches.append(entry)
        return entry

    def with_loss(self) -> list[MicrobatchLoss]:
        """The microbatches whose loss is computed here: all on the last stage, none on others."""
        return [entry for entry in self.microbatches if entry.loss_sum is not None]

    def denominator(self, device: torch.device) -> Tensor:
        """() float64 sum of this rank's weights; 0 on stages without a loss. A new tensor: reduced in place later."""
        parts = [entry.denominator for entry in self.with_loss()]
        return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64, device=device)
