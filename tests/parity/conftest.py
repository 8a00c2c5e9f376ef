"""One gloo process with Megatron's groups, for tests that build the network without `megatron.training`."""

import pytest
import torch.distributed as dist


@pytest.fixture(scope="session")
def one_rank():
    """Megatron's process groups of a single rank on the CPU backend."""
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    from megatron.core import parallel_state

    from megatron_medx.parallel.groups import start_alone

    yield start_alone()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
