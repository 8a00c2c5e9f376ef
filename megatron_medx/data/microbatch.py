"""Microbatch: the one thing that goes from `data` to `training`, with every field's shape and meaning.

Shape letters: S tokens of the row, N samples in it, I images, P patches of all images, C values of a patch,
M merged vision tokens of all images (P / merge_size^2).
"""

from dataclasses import dataclass

import torch

from megatron_medx.data.samples import SampleNotes


@dataclass(slots=True)
class Microbatch:
    """One row of concatenated samples: what one data-parallel rank computes in one forward pass.

    Attention and positions restart at each sample (`cu_seqlens`). A sample's segment may end in alignment tokens, and
    the row's tail may be padding, a segment of its own: these tokens weigh nothing, and no other token sees them.
    """

    tokens_1S: torch.Tensor
    """(1, S) int64 token ids; image placeholders included."""
    labels_1S: torch.Tensor
    """(1, S) int64 next token of the same sample; 0 where the weight is 0."""
    loss_weights_1S: torch.Tensor
    """(1, S) float32; 0 on prompt, image and padding tokens, on others the weight of their message, mostly 1."""
    positions_3S: torch.Tensor
    """(3, S) int64 M-RoPE positions (time, height, width), from 0 in every sample."""
    cu_seqlens: torch.Tensor
    """(N+1,) or, with a padded tail, (N+2,) int32: where each segment starts; the last entry is S."""
    pixels_PC: torch.Tensor
    """(P, C) float32 normalized patches, in Qwen's merge-block order, of the images that were asked for, in reading
    order: in training of those that this rank encodes. P may be 0."""
    grids_I3: torch.Tensor
    """(I, 3) int64 patches along (frames, height, width) of each image; I may be 0."""
    vision_index_M: torch.Tensor
    """(M,) int64 positions in S of the image placeholder tokens, ascending."""
    sample_ids: list[str]
    """The N samples, in order."""
    sample_tokens: list[int]
    """Tokens of each of the N samples, alignment not counted."""
    sample_folders: list[int]
    """Data folder of each of the N samples: its number in the mixture."""
    sample_notes: list[SampleNotes]
    """What each of the N samples says of itself."""
