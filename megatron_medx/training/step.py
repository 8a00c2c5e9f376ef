"""One forward step: a microbatch in, the sum of its token losses out.

Megatron's schedule calls `forward_step` once a microbatch. The loss of a step is the average over the
global batch that `training.loss_average` names (training/loss.py): numerators and denominators are summed across data-
and context-parallel ranks, never averaged apart.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import mpu
from torch import Tensor

from megatron_medx.config.flops import step_flops
from megatron_medx.config.run import RunConfig
from megatron_medx.data.choices import refuse_wrong_options
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.plan.mixture import read_mixture
from megatron_medx.parallel.context import cut_row
from megatron_medx.training.loss import MicrobatchLoss, StepLosses, averaging_weights
from megatron_medx.training.sample_losses import RowSums

LOSS, TOKENS, IMAGES, FLOPS, SAMPLES_CRC = "loss", "tokens", "images", "model_flops", "samples_crc"
"""Keys of what a step reports: the loss, which Megatron averages over microbatches and ranks, and counts."""

SOURCE_TOKENS = "source_tokens"

COUNTS = (TOKENS, IMAGES, SAMPLES_CRC, FLOPS)
"""What is counted of a row; behind them its tokens from each data folder of the mixture."""


def make_forward_step(config: RunConfig, losses: StepLosses) -> Callable:
    """The function that Megatron's schedule calls: (iterator, model) -> (output, loss function).

    Args:
        config: the run.
        losses: where each microbatch leaves its samples, loss, denominator and counts for the end of the step.
    """
    average, num_sources = config.training.loss_average, len(read_mixture(Path(config.data.path)))

    def forward_step(iterator: Iterator[Microbatch], model: torch.nn.Module) -> tuple[Tensor, Callable]:
        row = next(iterator)
        # Averaged over whole samples first, then cut as the model cuts the row over context-parallel ranks.
        weights_1S = averaging_weights(row.loss_weights_1S, row.cu_seqlens, average)
        weights_1L = cut_row(weights_1S, row.cu_seqlens, mpu.get_context_parallel_group())
        microbatch = to_device(row)
        output = model(
            tokens_1S=microbatch.tokens_1S,
            positions_3S=microbatch.positions_3S,
            cu_seqlens=microbatch.cu_seqlens,
            pixels_PC=microbatch.pixels_PC,
            grids_I3=microbatch.grids_I3,
            vision_index_M=microbatch.vision_index_M,
            labels_1S=microbatch.labels_1S,
            row_weight=weights_1S.sum().to(microbatch.tokens_1S.device),
        )
        entry = losses.add(row.sample_ids, sum(row.sample_tokens))
        by_sample = None
        if losses.meter is None:
            refuse_wrong_options(row)
            entry.counts = microbatch_counts(row, config, num_sources)
        else:
            by_sample = losses.meter.of_row(row, weights_1S)
        return output, partial(sum_of_losses, weights_1L.to(output.device), entry, by_sample=by_sample)

    return forward_step


def sum_of_losses(
    weights_1L: Tensor,
    entry: MicrobatchLoss,
    losses_1L: Tensor,
    by_sample: Callable[[Tensor], RowSums] | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Weighted sum of token losses, number of trained tokens, and what to report.

    Args:
        weights_1L: (1, L) from `averaging_weights`, cut as the losses are; 0 on prompt, image and padding tokens.
        entry: the microbatch's own in `StepLosses`; sum and exact denominator are filled in. The number of tokens is
            for Megatron's schedule, which adds integers alone; hooks.py divides by the denominator instead.
        losses_1L: (1, L) cross entropy of every token that this rank computes, float32.
        by_sample: of a validation: fills in the sums by sample, too.
    """
    if by_sample is not None:
        entry.samples = by_sample(losses_1L)
    loss_sum = (losses_1L.float() * weights_1L).sum()
    entry.loss_sum, entry.denominator = loss_sum.detach(), weights_1L.sum(dtype=torch.float64)
    return loss_sum, (weights_1L > 0).sum().int(), {LOSS: torch.stack([entry.loss_sum, entry.denominator])}


def microbatch_counts(microbatch: Microbatch, config: RunConfig, num_sources: int) -> list[float]:
    """What a row holds, padding not counted: COUNTS, then its tokens from each data folder."""
    patches = microbatch.grids_I3.prod(dim=1).tolist()
    source_tokens = [0] * num_sources
    for folder, tokens in zip(microbatch.sample_folders, microbatch.sample_tokens, strict=True):
        source_tokens[folder] += tokens
    counted = {
        TOKENS: sum(microbatch.sample_tokens),
        IMAGES: len(patches),
        SAMPLES_CRC: sum(zlib.crc32(sample_id.encode()) for sample_id in microbatch.sample_ids),
        FLOPS: step_flops(config.model, microbatch.sample_tokens, patches, config.training.freeze)["total"],
    }
    return [*(counted[key] for key in COUNTS), *source_tokens]


def step_counts(losses: StepLosses, sources: Sequence[str]) -> dict[str, float | dict[str, int]]:
    """What the rows of the running step hold, all ranks together: COUNTS and SOURCE_TOKENS, tokens by name.

    Collective over the data- and context-parallel ranks of the last stage: one sum, where Megatron's report would make
    one a key. Exact: whole numbers far below 2^53.

    Args:
        losses: the step's microbatches on this rank.
        sources: names of the mixture's data folders, in its order.
    """
    mine = torch.tensor([entry.counts for entry in losses.with_loss()], dtype=torch.float64).sum(dim=0)
    total = mine.to(torch.cuda.current_device())
    dist.all_reduce(total, group=mpu.get_data_parallel_group(with_context_parallel=True))
    # ranks that share a row's tokens have counted the whole row each
    counted = (total / mpu.get_context_parallel_world_size()).tolist()
    by_source = {name: round(tokens) for name, tokens in zip(sources, counted[len(COUNTS) :], strict=True)}
    return {**dict(zip(COUNTS, counted, strict=False)), SOURCE_TOKENS: by_source}


ON_CPU = ("cu_seqlens", "grids_I3", "vision_index_M", "pixels_PC")
"""What the model wants on the CPU: the fields from which it works out indices, since on the GPU each look at them would
wait for all work before it, and the patches, which only the first stage moves."""


def to_device(microbatch: Microbatch) -> Microbatch:
    """The microbatch on this rank's device, but for ON_CPU; itself on the CPU backend."""
    device = torch.cuda.current_device()
    moved = {
        field.name: value.to(device, non_blocking=True)
        for field in fields(microbatch)
        if isinstance(value := getattr(microbatch, field.name), Tensor) and field.name not in ON_CPU
    }
    return replace(microbatch, **moved)
