"""One data folder and one queue of runs for all tests of this folder."""

import pytest
import small_data
from medx_runs import Runs


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The small, awkward data folder."""
    return small_data.write_small_data(tmp_path_factory.mktemp("distributed") / "data")


@pytest.fixture(scope="session")
def runs(tmp_path_factory, data):
    """The queue in which `medx` commands run side by side."""
    queue = Runs(tmp_path_factory.mktemp("runs"), data)
    yield queue
    queue.close()


def pytest_collection_modifyitems(items):
    """A test that shares a run waits for it in the queue: on a busy machine longer than the suite's limit of 300 s."""
    for item in items:
        if "distributed" in item.path.parts:
            item.add_marker(pytest.mark.timeout(900))
