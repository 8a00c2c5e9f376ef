"""A run of 2,000 steps on 8 ranks, of which every test gets a copy."""

import shutil

import pytest

from benchmarks.long_run import make_run


@pytest.fixture(scope="session")
def made_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    make_run(folder, num_steps=2_000, num_ranks=8)
    return folder


@pytest.fixture
def run_folder(made_run, tmp_path):
    return shutil.copytree(made_run, tmp_path / "run")
