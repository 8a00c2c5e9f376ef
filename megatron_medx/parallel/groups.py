"""Process groups beyond Megatron's own.

The vision tower is not sliced: every tensor-parallel rank of the first stage holds it whole, so its Megatron modules
get groups of one rank.
"""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

_solo: dist.ProcessGroup | None = None


def start_alone() -> ProcessGroupCollection:
    """Start torch.distributed and Megatron's groups with this process as the only rank; no port is opened."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    return ProcessGroupCollection.use_mpu_process_groups()


def solo_groups() -> ProcessGroupCollection:
    """Groups that hold only this rank, for modules that are replicated instead of sliced.

    Collective: every rank must call it the first time.
    """
    global _solo
    if _solo is None or _solo not in dist.distributed_c10d._world.pg_map:
        _solo, _ = dist.new_subgroups(group_size=1)
    groups = ProcessGroupCollection()
    groups.tp = groups.cp = groups.pp = groups.ep = groups.expt_tp = groups.tp_cp = _solo
    return groups
