"""The vision tower: a native-resolution transformer over the patches of all images of a row.

Patches of all images are one packed sequence; attention stays within an image. The tower is whole on every rank of the
first stage (its modules are built on groups of one rank): it is small and its work uneven, so slicing its matrices
would cost more than it saves. Ranks share the images instead (image_encoding.py).

In FP8 the number of patches has to be a multiple, which no deal of images gives. So a blank image stands behind the
last one, whose patches attend to one another alone, and what becomes of it is cut off again.
"""

import math

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_medx.config.model import ModelConfig
from megatron_medx.config.precision import FP8_RECIPES
from megatron_medx.models.rotary import interpolated_positions, patch_angles, patch_rows_and_columns
from megatron_medx.models.row_rotary import cosines_and_sines
from megatron_medx.models.specs import LayerSpecs


class VisionTower(MegatronModule):
    """Patch embedding, interpolated positions, transformer layers with 2-D rotary attention, DeepStack taps."""

    def __init__(
        self,
        model: ModelConfig,
        config: TransformerConfig,
        specs: LayerSpecs,
        solo_groups: ProcessGroupCollection,
    ):
        super().__init__(config)
        self.sizes = model.vision
        self.multiple_patches = FP8_RECIPES[config.fp8_recipe].multiple if config.fp8 else 1
        self.patch_embed = torch.nn.Linear(self.sizes.patch_dim, self.sizes.hidden_size, dtype=config.params_dtype)
        self.pos_embed = torch.nn.Embedding(
            self.sizes.num_position_embeddings, self.sizes.hidden_size, dtype=config.params_dtype
        )
        self.encoder = TransformerBlock(
            config,
            specs.vision_block(self.sizes.num_layers),
            post_layer_norm=False,
            pg_collection=solo_groups,
        )
        for parameter in self.parameters():
            # Each tensor rank holds a copy; counted as shards, the copies would enter the gradient norm t times.
            parameter.tensor_model_parallel = False

    def forward(self, pixels_PC: Tensor, grids_I3: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode every image on its own.

        Args:
            pixels_PC: (P, C) normalized patches, merge block by merge block, images one after the other; P > 0.
            grids_I3: (I, 3) int64 frames, height, width of each image in patches, on the CPU; their products sum to P.

        Returns:
            (P, E) output of the last layer and K tensors (P, E) tapped after `deepstack_layers`.
        """
        num_patches = len(pixels_PC)
        pixels_PC, grids_I3 = padded_images(pixels_PC, grids_I3, self.multiple_patches, self.sizes.merge_size)
        rows, columns = patch_rows_and_columns(grids_I3, self.sizes.merge_size)
        h_PE = self.patch_embed(pixels_PC.to(self.patch_embed.weight.dtype))
        h_PE = h_PE + interpolated_positions(self.pos_embed.weight, grids_I3, rows, columns)
        rows, columns = rows.to(h_PE.device), columns.to(h_PE.device)
        angles_P11D = patch_angles(rows, columns, self.sizes.hidden_size // self.sizes.num_heads)
        h_P1E, taps = self._encode(
            hidden_states=h_PE.unsqueeze(1),
            attention_mask=None,
            rotary_pos_emb=cosines_and_sines(angles_P11D, h_PE.dtype),
            packed_seq_params=segments_of_frames(grids_I3, h_PE.device),
        )
        return h_P1E.squeeze(1)[:num_patches], [tap.squeeze(1)[:num_patches] for tap in taps]

    def _encode(self, **inputs) -> tuple[Tensor, list[Tensor]]:
        """Run the layers; Megatron returns the taps only when some are asked for."""
        taps = set(self.sizes.deepstack_layers)
        result = self.encoder(extract_layer_indices=taps, **inputs)
        return result if taps else (result, [])


def padded_images(pixels_PC: Tensor, grids_I3: Tensor, multiple: int, merge_size: int) -> tuple[Tensor, Tensor]:
    """The images, and behind them a blank one where the number of patches is no multiple.

    Args:
        pixels_PC: (P, C) patches; whole merge blocks, so P is a multiple of merge_size squared.
        grids_I3: (I, 3) int64 grids, on the CPU.
        multiple: of patches, which the result has, in whole merge blocks again.
        merge_size: side of a merge block, patches.

    Example: 20 patches to a multiple of 16 get a blank image of 2 x 6 patches, 32 together.
    """
    missing = -len(pixels_PC) % math.lcm(multiple, merge_size**2)
    if not missing:
        return pixels_PC, grids_I3
    blank = torch.tensor([[1, merge_size, missing // merge_size]])
    return torch.nn.functional.pad(pixels_PC, (0, 0, 0, missing)), torch.cat([grids_I3, blank])


def segments_of_frames(grids_I3: Tensor, device: torch.device) -> PackedSeqParams:
    """Attention segments of the tower, on `device`: each frame of each image on its own.

    Example: grids (1, 4, 6) and (2, 2, 2) give borders 0 24 28 32.
    """
    patches = (grids_I3[:, 1] * grids_I3[:, 2]).repeat_interleave(grids_I3[:, 0])
    borders = torch.nn.functional.pad(patches.cumsum(0), (1, 0)).int()
    return packed_segments(borders.to(device), int(patches.max()))


def packed_segments(cu_seqlens: Tensor, longest: int) -> PackedSeqParams:
    """Megatron's description of a packed row.

    Args:
        cu_seqlens: (segments + 1,) int32 borders, 0 first and the row's length last.
        longest: tokens of the longest segment.
    """
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
