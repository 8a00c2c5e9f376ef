"""Collectives of a rank alone, which gloo carries out by copies of the whole buffer.

Megatron's DistributedOptimizer scatters gradients and gathers parameters within one buffer. Where a group has one rank,
its share is the buffer itself, and there is nothing to do. `cpu.py` lists these among its patches of
`megatron.core.distributed.param_and_grad_buffer` (megatron-core 0.19.2).
"""

import contextlib
import functools
from collections.abc import Callable

from torch import Tensor
from torch.distributed import ProcessGroup


class Done:
    """Handle of work that is over."""

    def wait(self) -> None:
        """Return."""


def among_others(collective: Callable) -> Callable:
    """`reduce_scatter_tensor` or `all_gather_into_tensor`, left out where both tensors are one rank's same memory."""

    @functools.wraps(collective)
    def wrapped(output: Tensor, part: Tensor, *args, group: ProcessGroup, **kwargs):
        if group.size() == 1 and output.data_ptr() == part.data_ptr():
            return Done() if kwargs.get("async_op") else None
        return collective(output, part, *args, group=group, **kwargs)

    return wrapped


def coalesced_among_others(manager: Callable) -> Callable:
    """`_coalescing_manager`, which not every torch can leave with nothing to coalesce."""

    @functools.wraps(manager)
    def wrapped(group: ProcessGroup, *args, **kwargs):
        return contextlib.nullcontext(Done()) if group.size() == 1 else manager(group, *args, **kwargs)

    return wrapped
