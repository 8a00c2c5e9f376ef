"""The invertible layout changes between a Hugging Face tensor group and one Megatron tensor.

Each class moves values and never computes with them, so `to_hf(to_megatron(x))` is `x` bit for bit in any
dtype. A rule (`rules.py`) names one of them; the engine (`content.py`) applies it without knowing which.
Nothing here knows a tensor's name or a file.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from megatron_medx.config.model import ModelConfig

if TYPE_CHECKING:  # a plan of a conversion needs shapes alone, and torch takes 550 MB
    import torch

Shape = tuple[int, ...]


class Transformation(Protocol):
    """A bijection between the tensors of one group in Hugging Face layout and one Megatron tensor."""

    def megatron_shape(self, hf_shapes: tuple[Shape, ...]) -> Shape:
        """Shape of the Megatron tensor that holds tensors of these shapes."""

    def to_megatron(self, parts: tuple[torch.Tensor, ...], model: ModelConfig) -> torch.Tensor:
        """Build the Megatron tensor from the group."""

    def to_hf(self, whole: torch.Tensor, hf_shapes: tuple[Shape, ...], model: ModelConfig) -> tuple[torch.Tensor, ...]:
        """Take the Megatron tensor apart into contiguous tensors of `hf_shapes`."""


class Copy:
    """One tensor, the same on both sides."""

    def megatron_shape(self, hf_shapes):
        (shape,) = hf_shapes
        return shape

    def to_megatron(self, parts, model):
        (part,) = parts
        return part

    def to_hf(self, whole, hf_shapes, model):
        return (whole,)


class GateUp:
    """SwiGLU: gate [F, H] and up [F, H] -> fc1 [2F, H], all gate rows first.

    Megatron cuts fc1 in the middle (`megatron.core.transformer.mlp.apply_swiglu_sharded_factory`) before it
    deals either half to tensor-parallel ranks, so the stored order does not depend on the grid.
    """

    def megatron_shape(self, hf_shapes):
        gate, up = hf_shapes
        return (gate[0] + up[0], *gate[1:])

    def to_megatron(self, parts, model):
        import torch

        return torch.cat(parts)

    def to_hf(self, whole, hf_shapes, model):
        return tuple(part.contiguous() for part in whole.split([shape[0] for shape in hf_shapes]))


class ExpertTranspose:
    """All experts of a layer: matrices that take rows [E, in, out] <-> matrices of linear layers [E, out, in].

    The fused input projection needs nothing else: gate comes first and up second on both sides (see GateUp).
    """

    def megatron_shape(self, hf_shapes):
        ((experts, rows, columns),) = hf_shapes
        return (experts, columns, rows)

    def to_megatron(self, parts, model):
        (part,) = parts
        return part.transpose(1, 2).contiguous()

    def to_hf(self, whole, hf_shapes, model):
        return (whole.transpose(1, 2).contiguous(),)


class QkvInterleave:
    """Decoder attention: q [N*D, H], k [G*D, H], v [G*D, H] -> rows ordered by key/value group.

    Megatron stores [G, N/G + 2, D] rows: a group's query heads, then its key head, then its value head, so that
    tensor parallelism hands out whole groups.

    Example: 4 query heads, 2 groups, head size 1. q rows a b c d, k rows e f, v rows g h become
    a b e g | c d f h.
    """

    def megatron_shape(self, hf_shapes):
        return (sum(shape[0] for shape in hf_shapes), *hf_shapes[0][1:])

    def to_megatron(self, parts, model):
        import torch

        grouped = [part.reshape(model.num_kv_heads, -1, model.head_dim, *part.shape[1:]) for part in parts]
        return torch.cat(grouped, dim=1).reshape(-1, *parts[0].shape[1:])

    def to_hf(self, whole, hf_shapes, model):
        grouped = whole.reshape(model.num_kv_heads, -1, model.head_dim, *whole.shape[1:])
        heads_per_group = model.num_heads // model.num_kv_heads
        parts = grouped.split([heads_per_group, 1, 1], dim=1)
        return tuple(part.reshape(shape).contiguous() for part, shape in zip(parts, hf_shapes, strict=True))


class VisionQkv:
    """Vision attention, weight or bias: rows [3, heads, hd] -> rows [heads, 3, hd].

    Example: 2 heads of size 1. q0 q1 k0 k1 v0 v1 become q0 k0 v0 q1 k1 v1.
    """

    def megatron_shape(self, hf_shapes):
        (shape,) = hf_shapes
        return shape

    def to_megatron(self, parts, model):
        (part,) = parts
        return self._swap(part, 3, model.vision.num_heads)

    def to_hf(self, whole, hf_shapes, model):
        return (self._swap(whole, model.vision.num_heads, 3),)

    @staticmethod
    def _swap(rows, outer, inner):
        """Reorder rows [outer, inner, hd, ...] to [inner, outer, hd, ...]."""
        grouped = rows.reshape(outer, inner, -1, *rows.shape[1:])
        return grouped.transpose(0, 1).reshape(rows.shape).contiguous()


class PatchEmbed:
    """Conv3d kernel [H, channels, frames, px, px] <-> Linear weight [H, channels*frames*px*px], values in order."""

    def megatron_shape(self, hf_shapes):
        (shape,) = hf_shapes
        return (shape[0], math.prod(shape[1:]))

    def to_megatron(self, parts, model):
        (part,) = parts
        return part.reshape(part.shape[0], -1)

    def to_hf(self, whole, hf_shapes, model):
        (shape,) = hf_shapes
        return (whole.reshape(shape),)
