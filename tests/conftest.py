"""What holds for the whole suite: one thread a process, no network, no job around it, GPU tests only with a GPU.

And what many tests share: the demo's data, built once a session, and a run of its model that is over in seconds.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_medx.config.run import RunConfig

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


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """The whole demo data folder."""
    from megatron_medx.data.demo.build import build_demo

    folder = tmp_path_factory.mktemp("demo")
    build_demo(folder)
    return folder


@pytest.fixture
def tiny_run(demo, tmp_path) -> RunConfig:
    """The demo recipe on one rank, with one short row a step, in a folder of the test."""
    from megatron_medx.recipes import get_recipe

    config = get_recipe("demo")
    config.run.folder = str(tmp_path / "run")
    config.data.path = str(demo)
    config.data.packing = False
    config.parallel.world_size = config.parallel.tensor = 1
    config.training.global_batch_rows = 1
    config.optimizer.warmup_tokens = 0
    return config


@pytest.fixture
def save_at() -> Callable[[Path, int], None]:
    """Makes, in a root of checkpoints, one of a step that is whole as far as it can be seen without reading tensors."""

    def save(checkpoints: Path, step: int) -> None:
        folder = checkpoints / f"iter_{step:07d}"
        folder.mkdir()
        (folder / "__0_0.distcp").write_bytes(b"tensors")
        (folder / ".metadata").write_bytes(b"__0_0.distcp")
        (folder / "metadata.json").write_text("{}")
        (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))

    return save
