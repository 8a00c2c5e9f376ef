"""The norm of a step's gradients by part of the network, from the one pass that clipping makes anyway.

Megatron's outermost optimizer asks its own `get_grad_norm` for what gradients are clipped by. Here that is the root of
the parts' squares: each part's norm is made as Megatron makes its own (float32, every gradient of the whole grid once,
copies and tied embeddings not counted again), no gradient is read twice, and the one sum over ranks has three numbers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import clip_grads, distrib_optimizer
from megatron.core.optimizer import optimizer as megatron_optimizer

from megatron_medx.models.qwen3_vl import PART_PREFIXES

MARK = "medx_part"
"""Attribute of a parameter, and of its optimizer's copies: the part of the network that it belongs to."""

_copy_metadata = megatron_optimizer.copy_optimizer_param_metadata


def mark_parts(stage: torch.nn.Module) -> None:
    """Write on each parameter which part it belongs to.

    Args:
        stage: a Qwen3VLModel, not yet wrapped.
    """
    for name, parameter in stage.named_parameters():
        part = next(part for part, prefixes in PART_PREFIXES.items() if name.startswith(prefixes))
        setattr(parameter, MARK, part)


def let_copies_keep_marks() -> None:
    """The optimizer owns copies and pieces of parameters; Megatron copies its own marks to them by this function."""

    def with_part(destination: torch.Tensor, source: torch.Tensor) -> None:
        _copy_metadata(destination, source)
        if (part := getattr(source, MARK, None)) is not None:
            setattr(destination, MARK, part)

    megatron_optimizer.copy_optimizer_param_metadata = with_part
    distrib_optimizer.copy_optimizer_param_metadata = with_part


class PartNorms:
    """Norms of the parts' gradients before clipping, of the step whose gradients were clipped last.

    Args:
        parts: those that are trained, the same on every rank.
    """

    def __init__(self, parts: tuple[str, ...]):
        self._parts = parts
        self._norms: dict[str, float | torch.Tensor] = {}
        self._watched: Any = None

    def start_step(self, optimizer: Any) -> None:
        """Forget the step before; from now on `optimizer`, a ChainedOptimizer, has its norm from here."""
        self._norms = {}
        if self._watched is not optimizer:
            self._watched = optimizer
            optimizer.get_grad_norm = functools.partial(self._total, optimizer)

    def norm(self, part: str) -> float | None:
        """The norm of one part; None where it is frozen, or the step's update was left out before clipping."""
        return float(self._norms[part]) if part in self._norms else None

    @torch.no_grad()
    def _total(self, optimizer: Any) -> float | torch.Tensor:
        """The norm of all gradients. Collective over all ranks; a tensor where Megatron's own is one, on the GPU."""
        squares = torch.zeros(len(self._parts), dtype=torch.float32, device=torch.cuda.current_device())
        for number, part in enumerate(self._parts):
            gradients = [
                gradient
                for inner in optimizer.chained_optimizers
                for gradient in inner._filter_grads_for_norm(inner.get_parameters(), _belongs_to(part))
            ]
            if gradients:
                squares[number] = _local_norm(gradients) ** 2
        dist.all_reduce(squares, group=optimizer.get_grad_stats_parallel_group())
        if clip_grads.multi_tensor_scale_tensor_impl is not None:
            self._norms = dict(zip(self._parts, squares.sqrt(), strict=True))
            return squares.sum(dim=0, keepdim=True).sqrt()
        found = squares.tolist()
        self._norms = {part: math.sqrt(square) for part, square in zip(self._parts, found, strict=True)}
        return math.sqrt(sum(found))


def _local_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """() float32 norm of this rank's gradients, by the function that `get_grad_norm_fp32` uses."""
    unused = torch.zeros(1, dtype=torch.int, device=torch.cuda.current_device())
    norm, _ = clip_grads.multi_tensor_applier(clip_grads.l2_norm_impl, unused, [gradients], False)
    return norm.squeeze()


def _belongs_to(part: str) -> Callable[[torch.Tensor], bool]:
    return lambda parameter: getattr(parameter, MARK) == part
