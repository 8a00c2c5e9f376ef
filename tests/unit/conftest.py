"""The demo's data, built once a session, and a run of the demo's model that is over in seconds."""

from pathlib import Path

import pytest

from megatron_medx.config.run import RunConfig
from megatron_medx.data.demo.build import build_demo
from megatron_medx.recipes import get_recipe


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """The whole demo data folder."""
    folder = tmp_path_factory.mktemp("demo")
    build_demo(folder)
    return folder


@pytest.fixture
def tiny_run(demo, tmp_path) -> RunConfig:
    """The demo recipe on one rank, with one short row a step, in a folder of the test."""
    config = get_recipe("demo")
    config.run.folder = str(tmp_path / "run")
    config.data.path = str(demo)
    config.data.packing = False
    config.parallel.world_size = config.parallel.tensor = 1
    config.training.global_batch_rows = 1
    config.optimizer.warmup_steps = 0
    return config
