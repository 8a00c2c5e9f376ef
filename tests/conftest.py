"""What holds for the whole suite: one thread a process, no network, no job around it, GPU tests only with a GPU."""

import os

import pytest

for name in [name for name in os.environ if name.startswith("SLURM_")]:
    del os.environ[name]  # the suite may run inside a job; `medx train` would take itself for one of its tasks
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: workers and ranks share the cores
os.environ["HF_HUB_OFFLINE"] = "1"  # a wrong path must fail, not ask the hub


def pytest_collection_modifyitems(items):
    """Skip what is marked `gpu` where torch sees no CUDA device."""
    marked = [item for item in items if "gpu" in item.keywords]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
