"""A crafted run for every test of this folder."""

import pytest
from crafted_run import CraftedRun


@pytest.fixture
def run(tmp_path):
    return CraftedRun(tmp_path / "run")
