"""Sizes of tensors and of their differences, counted slice by slice so that no second copy of a tensor is made.

JSON has neither NaN nor infinity: they are counted, or None stands for them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

SLICE_VALUES = 2**18
"""Values cast at once, 2 MiB as fp64: they stay in the cache (2**22 took six times as long)."""


@dataclass(frozen=True, slots=True)
class Norms:
    """What one tensor holds, in four numbers."""

    norm: float
    """L2 norm of the finite values."""
    max_abs: float
    """Largest absolute finite value; 0 where there is none."""
    num_nan: int
    num_inf: int


@dataclass(frozen=True, slots=True)
class Distance:
    """How far two tensors of one shape lie apart.

    Equal values, also the same NaN or infinity on both sides, are at distance 0. Both distances are None where a NaN or
    an infinity stands on one side only.
    """

    relative_diff: float | None
    """L2 norm of the difference, divided by the larger of `norms`: 0 equal, 2 opposite signs."""
    max_abs_diff: float | None
    """Largest absolute difference."""
    norms: list[float]
    """L2 norm of the finite values of either side."""


def norms(tensor: torch.Tensor) -> Norms:
    """Norm, largest value and the number of NaN and infinities of a tensor, any shape, floating point."""
    squares = max_abs = 0.0
    num_nan = num_inf = 0
    for piece in _slices(tensor, torch.float32):  # holds every stored value exactly; sums are fp64
        size = _norm(piece)
        if not math.isfinite(size):
            num_nan += int(piece.isnan().sum())
            num_inf += int(piece.isinf().sum())
            piece = _finite(piece)
            size = _norm(piece)
        squares += size**2
        max_abs = max(max_abs, *(abs(end.item()) for end in piece.aminmax()))
    return Norms(math.sqrt(squares), max_abs, num_nan, num_inf)


def distance(left: torch.Tensor, right: torch.Tensor) -> Distance:
    """Distance of two tensors of one shape; their dtypes may differ."""
    assert left.shape == right.shape, f"{tuple(left.shape)} and {tuple(right.shape)}"
    squares = left_squares = right_squares = max_abs = 0.0
    comparable = True
    for one, other in zip(_slices(left, torch.float64), _slices(right, torch.float64), strict=True):
        same = (one == other) | (one.isnan() & other.isnan())
        apart = (one - other).abs().masked_fill(same, 0.0)
        squares += apart.square().sum().item()
        comparable = comparable and math.isfinite(squares)
        max_abs = max(max_abs, apart.max().item())
        left_squares += _finite(one).square().sum().item()
        right_squares += _finite(other).square().sum().item()
    larger = max(left_squares, right_squares)
    sides = [math.sqrt(left_squares), math.sqrt(right_squares)]
    if not comparable:
        return Distance(None, None, sides)
    return Distance(math.sqrt(squares / larger) if larger else 0.0, max_abs, sides)


def _slices(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The values in order, each slice cast when it is reached; none where the tensor is empty."""
    values = tensor.reshape(-1)
    return (piece.to(dtype) for piece in values.split(SLICE_VALUES)) if len(values) else iter(())


def _norm(values: torch.Tensor) -> float:
    return torch.linalg.vector_norm(values, dtype=torch.float64).item()


def _finite(values: torch.Tensor) -> torch.Tensor:
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
