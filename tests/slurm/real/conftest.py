"""A real Slurm for the tests of this folder: brought up once, taken down at the end, also when pytest is ended.

Its nodes are emulated on this machine (tests/slurm/cluster); everything else is as on a cluster: sbatch, slurmctld,
slurmd and srun are the real programs, and the scripts find nothing but the environment of the checkout. Four nodes let
two jobs of two nodes run side by side; more would only share the same cores.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from disturbances import SAVE_EVERY, STEPS, Lab
from slurm_jobs import PATIENCE_S, Job
from surviving import Run

from tests.distributed.grids import PACKED, SMALL
from tests.distributed.small_data import write_small_data

ROOT = Path(__file__).parents[3]
NODES = 4
CANNOT_BE_HERE = 77
"""Exit code of `cluster up` where the machine cannot have a Slurm."""


def pytest_configure(config):
    config.addinivalue_line("markers", "slurm: needs a real Slurm, which tests/slurm/cluster brings up as root")


def pytest_collection_modifyitems(items):
    """A test waits for jobs that others share: on a busy machine longer than the suite's limit of 300 s."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(1800))


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
def apart(tmp_path_factory):
    """A folder that processes on the last node, node4, see as an empty one of their own: a disk that is not shared."""
    return tmp_path_factory.mktemp("apart")


@pytest.fixture(scope="session")
def shell(cluster, apart, tmp_path_factory):
    """Environment of a login shell beside the cluster, which runs: no virtual environment, no `medx` on the PATH."""
    with sigterm_interrupts():
        try:
            done = cluster("up", "--nodes", str(NODES), "--apart", apart)
            if done.returncode == CANNOT_BE_HERE:
                pytest.skip(f"NO SLURM IS TESTED: {done.stderr.strip()}")
            assert done.returncode == 0, done.stderr
            conf = cluster("env").stdout.splitlines()[0].removeprefix("export SLURM_CONF=")
            home = str(tmp_path_factory.mktemp("home"))
            yield {"PATH": "/usr/bin:/bin", "HOME": home, "SLURM_CONF": conf, "MEDX_VENV": sys.prefix}
        finally:
            cluster("down")


@contextlib.contextmanager
def sigterm_interrupts():
    """SIGTERM ends pytest as Ctrl-C does, by way of its fixtures: no daemon of Slurm outlives the tests."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    """Overrides: small steps of recipe `demo`; two ranks share each matrix, so two nodes are data-parallel."""
    data = write_small_data(tmp_path_factory.mktemp("small") / "data")
    length = (f"training.steps={STEPS}", f"checkpoint.every_steps={SAVE_EVERY}")
    return [*SMALL, *PACKED, *length, "parallel.tensor=2", f"data.path={data}", "log.tensorboard=false"]


@pytest.fixture(scope="session")
def trained(submit, run_words, tmp_path_factory):
    """A finished job of slurm/pretrain.sh as it is submitted: two nodes, of each all GPUs; and its run folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    job = submit("--nodes=2", "slurm/pretrain.sh", "demo", *run_words, f"run.folder={folder}")
    job.succeeded()
    return job, folder


@pytest.fixture(scope="session")
def undisturbed(trained):
    """The same as a Run: what disturbed runs of four ranks are compared with."""
    return Run(*trained)


@pytest.fixture(scope="module")  # so that flows, which are asked for first, run meanwhile
def undisturbed_on_one_node(shell, run_words, tmp_path_factory):
    """The run of two ranks, started without Slurm: what disturbed runs of one node are compared with."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    command = [Path(sys.prefix) / "bin" / "medx", "train", "demo", *run_words, f"run.folder={folder}", "--nproc", "2"]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(None, folder)


@pytest.fixture(scope="session")
def lab(submit, run_words, tmp_path_factory):
    """Where runs are started to be disturbed."""
    lab = Lab(tmp_path_factory.mktemp("lab"), submit, run_words, NODES)
    yield lab
    lab.close()
