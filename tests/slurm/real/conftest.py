"""A real Slurm for the tests of this folder: brought up once, taken down at the end.

Its two nodes are emulated on this machine (tests/slurm/cluster); everything else is as on a cluster: sbatch, slurmctld,
slurmd and srun are the real programs, and the scripts find nothing but the environment of the checkout.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_jobs import TWO_BY_TWO, Job

from tests.distributed.grids import PACKED, SMALL
from tests.distributed.small_data import write_small_data

ROOT = Path(__file__).parents[3]


def pytest_configure(config):
    config.addinivalue_line("markers", "slurm: needs a real Slurm, which tests/slurm/cluster brings up as root")


def pytest_collection_modifyitems(items):
    """A test waits for jobs that others share: on a busy machine longer than the suite's limit of 300 s."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Function (words, **environment) -> the finished tests/slurm/cluster, which lies in a folder of the tests."""
    folder = tmp_path_factory.mktemp("slurm") / "cluster"

    def run(*words, **changes):
        environment = {**os.environ, "MEDX_SLURM_FOLDER": str(folder), **changes}
        command = [sys.executable, ROOT / "tests" / "slurm" / "cluster", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture(scope="session")
def shell(cluster, tmp_path_factory):
    """Environment of a login shell beside the cluster, which runs: no virtual environment, no `medx` on the PATH."""
    try:
        done = cluster("up")
        assert done.returncode == 0, done.stderr
        conf = cluster("env").stdout.splitlines()[0].removeprefix("export SLURM_CONF=")
        home = str(tmp_path_factory.mktemp("home"))
        yield {"PATH": "/usr/bin:/bin", "HOME": home, "SLURM_CONF": conf, "MEDX_VENV": sys.prefix}
    finally:
        cluster("down")


@pytest.fixture(scope="session")
def submit(shell, tmp_path_factory):
    """Function (words after `sbatch`) -> the Job, submitted from the checkout."""

    def sbatch(*words: object) -> Job:
        log = tmp_path_factory.mktemp("job") / "slurm.out"
        command = ["sbatch", "--parsable", f"--output={log}", *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, env=shell, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return Job(done.stdout.strip(), log, shell)

    return sbatch


@pytest.fixture(scope="session")
def run_words(tmp_path_factory):
    """Overrides: six small steps of recipe `demo` on four ranks, two of which share each matrix."""
    data = write_small_data(tmp_path_factory.mktemp("small") / "data")
    return [*SMALL, *PACKED, "training.steps=6", "parallel.tensor=2", f"data.path={data}", "log.tensorboard=false"]


@pytest.fixture(scope="session")
def trained(submit, run_words, tmp_path_factory):
    """A finished job of slurm/pretrain.sh on two nodes of two tasks, and its run folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    job = submit(*TWO_BY_TWO, "slurm/pretrain.sh", "demo", *run_words, f"run.folder={folder}")
    job.succeeded()
    return job, folder
