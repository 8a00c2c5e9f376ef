"""Rotary embedding of a whole packed row, in the place of Megatron's, which goes from segment to segment.

Angles are per token here, so borders of segments make no difference to them. For q and k of every layer Megatron's
code for packed rows looks up the border of each segment, for which the GPU's queue has to run empty each time, cuts the
angles anew, and takes their cosines and sines, which each layer then keeps for its backward pass. Ours takes those of
this rank's tokens, made once for all layers.

Written against megatron-core 0.19.2; tests/unit/models/test_row_rotary.py pins what is relied on.
"""

import torch
from megatron.core.transformer import attention
from torch import Tensor


def use_row_rotary() -> None:
    """Let all attention layers of this process rotate by `rotate_row`; without effect when called again."""
    attention.apply_rotary_pos_emb = rotate_row


def cosines_and_sines(angles_L11D: Tensor, dtype: torch.dtype) -> Tensor:
    """What `rotate_row` takes, for Megatron to hand to its layers as `rotary_pos_emb`.

    Args:
        angles_L11D: (L, 1, 1, D) float32 of the tokens, or patches, that this rank holds.
        dtype: of queries and keys.

    Returns:
        (2, L, 1, D) cosines and sines.
    """
    angles_L1D = angles_L11D.squeeze(1)
    return torch.stack((angles_L1D.cos(), angles_L1D.sin())).to(dtype)


def rotate_row(t_LND: Tensor, turns_2L1D: Tensor, *args, **kwargs) -> Tensor:
    """Turn the halves of every head against each other; what else Megatron passes, about segments and ranks, is unused.

    Example, one head of size 4, angles a and b: [w x y z] becomes [w cos a - y sin a, x cos b - z sin b,
    y cos a + w sin a, z cos b + x sin b].

    Args:
        t_LND: (L, N, D) queries or keys.
        turns_2L1D: from `cosines_and_sines`.

    Returns:
        (L, N, D).
    """
    cosines, sines = turns_2L1D
    first, second = t_LND.chunk(2, dim=-1)
    return t_LND * cosines + torch.cat((-second, first), dim=-1) * sines
