"""Which rank encodes which image of a microbatch, and where its features lie when all ranks' are gathered.

In: an estimated cost for each image. Out: image indices for each rank. Pure arithmetic: every rank works out the whole
deal for itself, so nothing is sent and all agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_medx.config.flops import image_flops
from megatron_medx.config.model import ModelConfig


def deal_images(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Deal images to ranks, the costliest first, each to the rank with the least cost so far.

    The result is a function of the arguments alone: equal costs go in the order of their indices, and of equally
    loaded ranks the lowest takes the image. The costliest rank has at most 4/3 - 1/(3 num_ranks) times what the best
    deal would give it. No deal can bring it below the costliest image or below the mean.

    Args:
        costs: of each image, > 0, in any unit (`config.flops.image_flops`); may be empty.
        num_ranks: at least 1.

    Returns:
        Image indices of each rank, ascending; a rank may get none. Every image occurs once.

    Example (costs 2, 9, 4, 3, 4 on three ranks; images are dealt in the order 1, 2, 4, 3, 0):

        rank 0    [1]       cost 9
        rank 1    [2, 3]    cost 4 + 3
        rank 2    [0, 4]    cost 4 + 2

    Source: longest processing time first, R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for image in sorted(range(len(costs)), key=lambda image: -costs[image]):
        rank = loads.index(min(loads))
        shares[rank].append(image)
        loads[rank] += costs[image]
    return [sorted(share) for share in shares]


@dataclass(frozen=True, slots=True)
class ImageShare:
    """One rank's part of a microbatch's images, and the way back to the whole. Tensors are on the CPU."""

    images: list[int]
    """Indices of this rank's images, ascending; may be empty."""
    num_tokens: int
    """Image tokens of these."""
    tokens_per_rank: int
    """Image tokens of the rank that has most, at least 1: the others pad to it, so that gathered parts are equal."""
    place_M: Tensor
    """(M,) int64 for every image token of the microbatch, in reading order: its row among the gathered tokens."""


def share_images(
    costs: Sequence[float], patches: Sequence[int], patches_per_token: int, num_ranks: int, rank: int
) -> ImageShare:
    """Deal the images of a microbatch and say what one rank does.

    Args:
        costs: see `deal_images`.
        patches: of each image, in reading order.
        patches_per_token: patches that become one image token (merge_size squared).
        num_ranks, rank: place among the ranks that share the images.

    Example (patches 8, 4, 12, one cost a patch, 4 patches a token, two ranks): rank 0 encodes image 2 (3 tokens), rank
    1 images 0 and 1 (2 + 1 tokens), so 3 tokens per rank and places 3 4 | 5 | 0 1 2.
    """
    deal = deal_images(costs, num_ranks)
    tokens = [count // patches_per_token for count in patches]
    tokens_per_rank = max(1, *(sum(tokens[image] for image in images) for images in deal))
    starts: dict[int, int] = {}
    for number, images in enumerate(deal):
        at = number * tokens_per_rank
        for image in images:
            starts[image] = at
            at += tokens[image]
    return ImageShare(
        images=deal[rank],
        num_tokens=sum(tokens[image] for image in deal[rank]),
        tokens_per_rank=tokens_per_rank,
        place_M=_joined([torch.arange(starts[image], starts[image] + n) for image, n in enumerate(tokens)]),
    )


def share_row_images(model: ModelConfig, grids_I3: Tensor, num_ranks: int, rank: int) -> ImageShare:
    """One rank's part of the images of a row, dealt by what tower and mergers take for each.

    Args:
        model: the network's sizes.
        grids_I3: (I, 3) int64 patches along (frames, height, width) of all images of the row, on the CPU.
        num_ranks, rank: place among the ranks that share the row.
    """
    patches = grids_I3.prod(dim=1).tolist()
    # Attention stays within a frame, so an image costs as much as its frames do.
    costs = [t * image_flops(model, n // t) for n, t in zip(patches, grids_I3[:, 0].tolist(), strict=True)]
    return share_images(costs, patches, model.vision.merge_size**2, num_ranks, rank)


def own_images(model: ModelConfig, num_ranks: int, rank: int, grids_I3: Tensor) -> list[int]:
    """Numbers of the images of a row that one of the ranks that share it encodes; arguments of `share_row_images`."""
    return share_row_images(model, grids_I3, num_ranks, rank).images


def no_images(grids_I3: Tensor) -> list[int]:
    """What a stage without a tower encodes."""
    return []


def _joined(ranges: list[Tensor]) -> Tensor:
    return torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.int64)
