"""One forward step: a microbatch in, the sum of its token losses out.

Megatron's schedule calls `forward_step` once a microbatch. The loss of a step is the average over the
global batch that `training.loss_average` names (training/loss.py): numerators and denominators are summed across data-
and context-parallel ranks, never averaged apart.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial

import torch
from megatron.core import mpu
from torch import Tensor

from megatron_medx.config.flops import step_flops
from megatron_medx.config.run import RunConfig
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.parallel.context import cut_row
from megatron_medx.training.loss import MicrobatchLoss, StepLosses, averaging_weights

LOSS, TOKENS, IMAGES, FLOPS, SAMPLES_CRC = "loss", "tokens", "images", "model_flops", "samples_crc"
"""Keys of what a step reports; Megatron sums each over microbatches and ranks."""


def make_forward_step(config: RunConfig, losses: StepLosses) -> Callable:
    """The function that Megatron's schedule calls: (iterator, model) -> (output, loss function).

    Args:
        config: the run.
        losses: where each microbatch leaves its samples, loss and denominator for the end of the step.
    """
    freeze, average = config.training.freeze, config.training.loss_average

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
        counts = microbatch_counts(microbatch, config, freeze)
        entry = losses.add(row.sample_ids, sum(row.sample_tokens))
        return output, partial(sum_of_losses, weights_1L.to(output.device), counts, entry)

    return forward_step


def sum_of_losses(
    weights_1L: Tensor, counts: dict[str, Tensor], entry: MicrobatchLoss, losses_1L: Tensor
) -> tuple[Tensor, Tensor, dict]:
    """Weighted sum of token losses, number of trained tokens, and what to report.

    Args:
        weights_1L: (1, L) from `averaging_weights`, cut as the losses are; 0 on prompt, image and padding tokens.
        counts: from `microbatch_counts`.
        entry: the microbatch's own in `StepLosses`; sum and exact denominator are filled in. The number of tokens is
            for Megatron's schedule, which adds integers alone; hooks.py divides by the denominator instead.
        losses_1L: (1, L) cross entropy of every token that this rank computes, float32.
    """
    loss_sum = (losses_1L.float() * weights_1L).sum()
    entry.loss_sum, entry.denominator = loss_sum.detach(), weights_1L.sum(dtype=torch.float64)
    report = {LOSS: torch.stack([entry.loss_sum, entry.denominator])}
    return loss_sum, (weights_1L > 0).sum().int(), report | counts


def microbatch_counts(microbatch: Microbatch, config: RunConfig, freeze: tuple[str, ...]) -> dict[str, Tensor]:
    """What a microbatch holds, in the form in which Megatron's report yields the sum over a step.

    Megatron reports sum(first) / sum(second) over the microbatches of the global batch. With 1 / global_batch_rows as
    the second entry of each of them the denominator is 1, so the report is the sum. Padding counts as neither.
    """
    patches = microbatch.grids_I3.prod(dim=1).tolist()
    values = {
        TOKENS: sum(microbatch.sample_tokens),
        IMAGES: len(patches),
        SAMPLES_CRC: sum(zlib.crc32(sample_id.encode()) for sample_id in microbatch.sample_ids),
        FLOPS: step_flops(config.model, microbatch.sample_tokens, patches, freeze)["total"],
    }
    share = 1.0 / config.training.global_batch_rows
    device = microbatch.tokens_1S.device
    return {key: torch.tensor([value, share], dtype=torch.float64, device=device) for key, value in values.items()}


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
