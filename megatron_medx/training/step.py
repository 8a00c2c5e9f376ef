"""One forward step: a microbatch in, the sum of its token losses out.

Megatron's schedule calls `forward_step` once a microbatch. The loss of a step is the mean over all trained tokens of
the global batch: numerators and denominators are summed across data- and context-parallel ranks, never averaged apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor

from megatron_medx.config.flops import step_flops
from megatron_medx.config.run import RunConfig
from megatron_medx.data.microbatch import Microbatch

LOSS, TOKENS, IMAGES, FLOPS = "loss", "tokens", "images", "model_flops"
"""Keys of what a step reports; Megatron sums each over microbatches and ranks."""


def make_forward_step(config: RunConfig) -> Callable:
    """The function that Megatron's schedule calls: (iterator, model) -> (output, loss function)."""
    freeze = config.training.freeze

    def forward_step(iterator: Iterator[Microbatch], model: torch.nn.Module) -> tuple[Tensor, Callable]:
        microbatch = to_device(next(iterator))
        output = model(
            tokens_1S=microbatch.tokens_1S,
            positions_3S=microbatch.positions_3S,
            cu_seqlens=microbatch.cu_seqlens,
            pixels_PC=microbatch.pixels_PC,
            grids_I3=microbatch.grids_I3,
            vision_index_M=microbatch.vision_index_M,
            labels_1S=microbatch.labels_1S,
        )
        counts = microbatch_counts(microbatch, config, freeze)
        return output, partial(sum_of_losses, microbatch.loss_weights_1S, counts)

    return forward_step


def sum_of_losses(weights_1S: Tensor, counts: dict[str, Tensor], losses_1S: Tensor) -> tuple[Tensor, Tensor, dict]:
    """Weighted sum of token losses, number of trained tokens, and what to report.

    Args:
        weights_1S: (1, S) 1 on trained tokens, 0 on prompt, image and padding tokens.
        counts: from `microbatch_counts`.
        losses_1S: (1, S) cross entropy of every token, float32.
    """
    loss_sum = (losses_1S.float() * weights_1S).sum()
    num_trained = weights_1S.sum()
    report = {LOSS: torch.stack([loss_sum.detach(), num_trained])}
    return loss_sum, num_trained.round().int(), report | counts


def microbatch_counts(microbatch: Microbatch, config: RunConfig, freeze: tuple[str, ...]) -> dict[str, Tensor]:
    """Tokens, images and model FLOPs of a microbatch, in the form in which Megatron's report yields their sum.

    Megatron reports sum(first) / sum(second) over the microbatches of the global batch. With 1 / global_batch_rows as
    the second entry of each of them the denominator is 1, so the report is the sum. Padding counts as neither.
    """
    segments = microbatch.cu_seqlens.diff().tolist()[: len(microbatch.sample_ids)]
    patches = microbatch.grids_I3.prod(dim=1).tolist()
    values = {
        TOKENS: sum(segments),
        IMAGES: len(patches),
        FLOPS: step_flops(config.model, segments, patches, freeze)["total"],
    }
    share = 1.0 / config.training.global_batch_rows
    device = microbatch.tokens_1S.device
    return {key: torch.tensor([value, share], dtype=torch.float64, device=device) for key, value in values.items()}


def to_device(microbatch: Microbatch) -> Microbatch:
    """The microbatch on this rank's device; itself on the CPU backend."""
    device = torch.cuda.current_device()
    moved = {
        field.name: value.to(device, non_blocking=True)
        for field in fields(microbatch)
        if isinstance(value := getattr(microbatch, field.name), Tensor)
    }
    return replace(microbatch, **moved)
