"""tests/slurm/cluster: what it brings up, that it starts nothing twice, and what it refuses."""

import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[3]


def test_tasks_know_their_place_and_their_gpus(shell):
    size = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--exclusive", "--mem=0")
    command = ["srun", *size, "bash", "-c", "echo $SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"]
    done = subprocess.run(command, env=shell, capture_output=True, text=True, timeout=30)
    assert sorted(done.stdout.splitlines()) == ["0 node1 0,1", "1 node1 0,1", "2 node2 0,1", "3 node2 0,1"], done.stderr


def test_an_exclusive_job_has_all_gpus_of_its_nodes_and_a_step_those_it_asks_for(submit):
    """What slurm/pretrain.sh builds on: it names no number of GPUs, and runs one task for each."""
    said = "echo in the job $SLURM_GPUS_ON_NODE; srun -n2 {} bash -c 'echo in a step $CUDA_VISIBLE_DEVICES'"
    for words, expected in (("--gres=gpu:$SLURM_GPUS_ON_NODE", "in a step 0,1"), ("", "in a step")):
        job = submit("--nodes=1", "--exclusive", "--mem=0", "--wrap", said.format(words))
        job.succeeded()
        assert [line.strip() for line in job.said().splitlines()] == ["in the job 2", expected, expected]


def test_up_starts_nothing_twice(cluster, shell):
    def daemons():
        return {path.name: path.read_text() for path in (Path(shell["SLURM_CONF"]).parent / "run").glob("*.pid")}

    before = daemons()
    assert len(before) == 6  # munged, slurmctld, and slurmd on four nodes
    assert cluster("up", "--nodes", "4").returncode == 0
    assert daemons() == before
    assert cluster("status").stdout.count("idle") == 8  # four nodes, in two partitions


def test_what_does_not_fit_is_refused_at_once(shell):
    done = subprocess.run(["sbatch", "--nodes=5", "--wrap=true"], env=shell, capture_output=True, text=True)
    assert done.returncode == 1 and "Node count specification invalid" in done.stderr


def test_an_urgent_job_preempts_another_which_starts_again(submit):
    """After the seconds of grace in which its tasks, which had SIGTERM at once, may save."""
    low = submit("--nodes=2", "--exclusive", "--wrap", 'test "$SLURM_RESTART_COUNT" = 1 || sleep 120')
    low.wait_until(lambda facts: facts["JobState"] == "RUNNING", "its start")
    place = f"--nodelist={low.facts()['NodeList']}"
    submit("--partition=urgent", "--nodes=2", place, "--exclusive", "--wrap", "true").succeeded()
    assert low.succeeded()["Restarts"] == "1"


def test_a_second_cluster_runs_beside_the_first(cluster, shell, tmp_path):
    other = {"MEDX_SLURM_FOLDER": str(tmp_path / "other")}
    hosts = Path("/etc/hosts").read_text()
    try:
        assert "node1" in cluster("up", "--nodes", "1", "--gpus", "0", **other).stdout
        command = ["srun", "bash", "-c", "echo $SLURMD_NODENAME ${CUDA_VISIBLE_DEVICES-none}"]
        environment = shell | {"SLURM_CONF": str(tmp_path / "other" / "slurm.conf")}
        assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "node1 none\n"
    finally:
        assert cluster("down", "--purge", **other).returncode == 0
    assert not (tmp_path / "other").exists() and Path("/etc/hosts").read_text() == hosts
    assert "node2" in subprocess.run(["sinfo"], env=shell, capture_output=True, text=True).stdout.replace("[1-4]", "2")


def test_what_is_in_the_way_is_said(cluster, shell, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    nowhere = tmp_path / "nowhere"
    for words, changes, message in [
        (("status",), {"MEDX_SLURM_FOLDER": str(nowhere)}, f"found:  no Slurm runs in {nowhere}"),
        (("up", "--nodes", "3"), {}, "needed: 3 nodes, each 4 CPUs and 2 GPUs"),
        (("up",), {"MEDX_SLURM_FOLDER": str(foreign)}, "belongs to another user"),
    ]:
        done = cluster(*words, **changes)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert [done.stderr.count(part) for part in ("found:", "needed:", "do:")] == [1, 1, 1]


@pytest.fixture
def program(monkeypatch):
    """tests/slurm/cluster as a module: what it meets on other machines is put in its place."""
    path = str(ROOT / "tests" / "slurm" / "cluster")
    spec = spec_from_loader("cluster", SourceFileLoader("cluster", path))
    module = module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec.loader.exec_module(module)
    return module


def test_what_other_machines_lack_is_said(program, monkeypatch, tmp_path):
    monkeypatch.setattr(program, "find", lambda name: None)
    with pytest.raises(program.NotHere, match="no munge slurm-wlm and no apt-get"):
        program.install()
    monkeypatch.setattr(program, "find", lambda name: "/bin/false" if name == "apt-get" else None)
    with pytest.raises(program.NotHere, match="apt-get update failed"):
        program.install()
    monkeypatch.setattr(program, "find", lambda name: "/bin/false")
    with pytest.raises(program.Refused, match="slurmctld -f conf failed"):
        program.start("slurmctld", tmp_path / "pid", ["slurmctld", "-f", "conf"])
    monkeypatch.setattr(program, "UP_S", 0.0)
    with pytest.raises(program.Refused, match=r"take jobs: \{\}"):
        program.wait_until_fit(["node1"])
    with pytest.raises(program.Refused, match="no 2000 free ports"):
        program.free_ports(2000)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(program.NotHere, match="user 1000"):
        program.up(2, 4, 2)
