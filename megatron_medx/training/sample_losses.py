"""The token losses of validation rows, summed by sample: what every number of a validation is made of.

Comes in: a row, and the losses of the tokens that a rank computes of it. Goes out: one `SampleLoss` a sample, of all
data-parallel ranks, on the last of them. Sums are float64; a sample that context parallelism cuts is put together.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from megatron.core import mpu
from torch import Tensor

from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.samples import SampleNotes
from megatron_medx.parallel.context import cut_row


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What is known of a sample before it is looked at."""

    sample_id: str
    notes: SampleNotes
    num_tokens: int
    """Text and image tokens."""
    trained_tokens: int
    """Those that a loss is taken of."""
    num_bytes: int
    """UTF-8 bytes that these spell."""
    weight: float
    """Sum of their weights in the average that `training.loss_average` names."""


@dataclass(frozen=True, slots=True)
class SampleLoss:
    """A sample and its losses, in nats."""

    facts: SampleFacts
    weighted_loss: float
    """Each trained token's times its weight."""
    loss: float
    """Each trained token's once."""
    text_loss: float
    """Of those tokens alone that spell text: special ones, such as `<|im_end|>`, do not."""


@dataclass(slots=True)
class RowSums:
    """The N samples of a row, and what this rank has of their losses."""

    facts: list[SampleFacts]
    sums_3N: Tensor
    """(3, N) float64 on this rank's device: weighted loss, loss, text loss, of the tokens of this rank."""


class SampleMeter:
    """Sums up rows by sample.

    Args:
        num_bytes_V: (V,) from `token_bytes`.
    """

    def __init__(self, num_bytes_V: Tensor):
        self._num_bytes_V = num_bytes_V

    def of_row(self, row: Microbatch, weights_1S: Tensor) -> Callable[[Tensor], RowSums]:
        """The function that takes the (1, L) losses of this rank's tokens; it keeps nothing large of the row.

        Example: samples of 3 and 2 tokens, the last 2 and 1 of them trained, and a tail of 3: segments 0 0 0 1 1 2 2 2;
        losses 5 1 3 7 2 0 0 0 become 4 and 2.

        Args:
            row: on the CPU.
            weights_1S: (1, S) from `averaging_weights`.
        """
        lengths = row.cu_seqlens.long().diff()
        segment_S = torch.arange(len(lengths)).repeat_interleave(lengths)
        trained_S = row.loss_weights_1S[0] > 0
        bytes_S = torch.where(trained_S, self._num_bytes_V[row.labels_1S[0]], 0)
        factors_3S = torch.stack([weights_1S[0].double(), trained_S.double(), (bytes_S > 0).double()])
        known_3S = torch.stack([trained_S.double(), bytes_S.double(), weights_1S[0].double()])
        known = _by_segment(known_3S, segment_S, len(lengths)).T.tolist()
        samples = zip(row.sample_ids, row.sample_notes, row.sample_tokens, known, strict=False)  # the tail is no sample
        facts = [
            SampleFacts(sample_id, notes, num_tokens, int(trained), int(num_bytes), weight)
            for sample_id, notes, num_tokens, (trained, num_bytes, weight) in samples
        ]
        group = mpu.get_context_parallel_group()
        factors_3L = cut_row(factors_3S, row.cu_seqlens, group)
        segment_L = cut_row(segment_S[None], row.cu_seqlens, group)[0]
        return partial(_row_sums, facts, factors_3L, segment_L, len(lengths))


def _row_sums(
    facts: list[SampleFacts], factors_3L: Tensor, segment_L: Tensor, num_segments: int, losses_1L: Tensor
) -> RowSums:
    factors_3L, segment_L = factors_3L.to(losses_1L.device), segment_L.to(losses_1L.device)
    # what weighs nothing may be infinite
    counted_3L = torch.where(factors_3L > 0, factors_3L * losses_1L.detach().double(), 0.0)
    return RowSums(facts, _by_segment(counted_3L, segment_L, num_segments)[:, : len(facts)])


def _by_segment(values_3L: Tensor, segment_L: Tensor, num_segments: int) -> Tensor:
    """(3, segments) sums of the values of each segment."""
    return values_3L.new_zeros(len(values_3L), num_segments).index_add_(1, segment_L, values_3L)


def gather_samples(rows: Iterable[RowSums]) -> list[SampleLoss]:
    """The samples of all data-parallel ranks on the last of them, none on the others.

    Collective over the data- and context-parallel ranks of the last stage.

    Args:
        rows: of this rank, at least one.
    """
    rows = list(rows)
    sums_3N = torch.cat([row.sums_3N for row in rows], dim=1)
    dist.all_reduce(sums_3N, group=mpu.get_context_parallel_group())
    facts = [one for row in rows for one in row.facts]
    own = [SampleLoss(one, *sums) for one, sums in zip(facts, sums_3N.T.tolist(), strict=True)]
    group = mpu.get_data_parallel_group()
    last = dist.get_process_group_ranks(group)[-1]
    gathered: list | None = [None] * group.size() if dist.get_rank() == last else None
    dist.gather_object(own, gathered, dst=last, group=group)
    return [sample for of_rank in gathered or [] for sample in of_rank]
