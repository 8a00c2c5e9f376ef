"""Process groups of the preflight: opened over a store that is there, used for seconds, closed; without Megatron."""

import datetime

import torch
import torch.distributed as dist


def open_all(store: dist.Store, rank: int, size: int, limit_s: float) -> None:
    """Start torch.distributed with all ranks: NCCL where a GPU is (it connects at first use), else gloo."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    limit = datetime.timedelta(seconds=limit_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)


def open_some(ranks: list[int], limit_s: float) -> dist.ProcessGroup:
    """A group of these ranks, of which this is one; only they call it, each in its own order of groups."""
    return dist.new_group(ranks, timeout=datetime.timedelta(seconds=limit_s), use_local_synchronization=True)


def close_all() -> None:
    """End torch.distributed where it was started."""
    if dist.is_initialized():
        dist.destroy_process_group()
