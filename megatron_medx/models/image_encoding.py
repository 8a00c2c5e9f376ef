"""The images of a row, encoded by all ranks of the first stage that share the row.

Each tensor x context rank holds the whole tower and the mergers, encodes the images it was dealt, and gathers what the
others have made. In the backward pass the gradient of a feature is the sum over the ranks whose tokens used it, and it
goes to the one rank that encoded the image. So a rank's gradient of a tower weight is that of its images alone, and
Megatron sums these over the ranks: over data and context ranks with all others, over tensor ranks because the weights
are marked as those of sequence parallelism are (`mark_as_shared`).
"""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor
from torch.nn.functional import pad

from megatron_medx.config.model import ModelConfig
from megatron_medx.models.merger import Mergers
from megatron_medx.models.vision import VisionTower
from megatron_medx.parallel.image_dealing import share_row_images


def encode_images(
    model: ModelConfig,
    tower: VisionTower,
    mergers: Mergers,
    pixels_PC: Tensor,
    grids_I3: Tensor,
    groups: ProcessGroupCollection,
    tower_rests: bool = False,
) -> tuple[Tensor, Tensor]:
    """Features of all images of a row, each encoded by one of the ranks that share the row. Collective.

    A rank without an image encodes one blank merge block of which nothing is used: kernels never see an empty input,
    every collective has all its ranks, and every parameter takes part in the backward pass (with a zero gradient).
    So do all ranks of a row without any image, unless the tower rests then.

    Args:
        pixels_PC: (P, C) patches of the images that `share_row_images` deals to this rank, on any device; P may be 0.
        grids_I3: (I, 3) int64 grids of all images, on the CPU.
        groups: Megatron's; `tp_cp` are the ranks that share the row.
        tower_rests: in a row without images tower and mergers are left out, and their parameters have no gradient.

    Returns:
        (G, 1 + K, H) gathered features: the image tokens, then the K DeepStack levels of each.
        (M,) int64 where each image token of the row, in reading order, stands among the G; on the CPU.
    """
    if tower_rests and not len(grids_I3):
        shape = (0, 1 + len(model.vision.deepstack_layers), model.hidden_size)
        device = tower.patch_embed.weight.device
        return torch.zeros(shape, device=device), torch.zeros(0, dtype=torch.int64)
    merge_block = model.vision.merge_size**2
    share = share_row_images(model, grids_I3, groups.tp_cp.size(), groups.tp_cp.rank())
    num_patches = share.num_tokens * merge_block
    assert len(pixels_PC) == num_patches, f"{len(pixels_PC)} patches, this rank's images have {num_patches}"
    if share.images:
        grids_I3 = grids_I3[share.images]
    else:
        pixels_PC = pixels_PC.new_zeros(merge_block, model.vision.patch_dim)
        grids_I3 = torch.tensor([[1, model.vision.merge_size, model.vision.merge_size]])
    pixels_PC = pixels_PC.to(tower.patch_embed.weight.device, non_blocking=True)
    final_MH, levels_MH = mergers(*tower(pixels_PC, grids_I3))
    features = torch.stack([final_MH, *levels_MH], dim=1)
    features = pad(features[: share.num_tokens], (0, 0, 0, 0, 0, share.tokens_per_rank - share.num_tokens))
    return gather_from_sequence_parallel_region(features, group=groups.tp_cp), share.place_M


def mark_as_shared(module: torch.nn.Module, sequence_parallel: bool) -> None:
    """Say that each tensor rank has a part of these weights' gradient, as of a norm's under sequence parallelism."""
    for parameter in module.parameters():
        parameter.sequence_parallel = sequence_parallel
