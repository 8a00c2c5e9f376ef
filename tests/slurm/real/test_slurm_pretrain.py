"""slurm/pretrain.sh on a real Slurm: tasks of srun train as the ranks of one machine, and a refusal ends the job."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from disturbances import STEPS

from megatron_medx.run_folder import events

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[3]
LOSS_TOLERANCE = 1e-5
"""As in tests/distributed; measured: every digit equal."""


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_losses_are_those_of_one_machine(trained, run_words, tmp_path):
    _, folder = trained
    medx, alone = Path(sys.prefix) / "bin" / "medx", tmp_path / "alone"
    command = [medx, "train", "demo", *run_words, f"run.folder={alone}", "--nproc", "4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=420)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, reference = metrics(folder), metrics(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in reference] == list(range(1, STEPS + 1))
    assert [line["samples_crc"] for line in ours] == [line["samples_crc"] for line in reference]
    losses = [(line["loss"], other["loss"]) for line, other in zip(ours, reference, strict=True)]
    assert all(abs(loss - other) <= LOSS_TOLERANCE for loss, other in losses), losses


def test_every_node_has_its_tasks(trained):
    job, folder = trained
    facts = job.facts()
    assert facts["NodeList"] == "node[1-2]"
    assert f"job {job.number}, restart 0: 4 tasks on 2 nodes, meeting on node1" in job.said()
    assert job.said().count("\nrun  ") == 1  # one task describes the run
    assert sorted(log.name for log in folder.glob("logs/rank_*.log")) == [f"rank_{rank}.log" for rank in range(4)]
    assert (folder / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == str(STEPS)


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        ((), {}, "found:  no recipe"),
        (("demo", "paralel.tensor=2"), {}, "did you mean parallel.tensor"),
        (("demo", "parallel.tensor=8"), {}, "parallel.tensor 8"),
        (("demo",), {"MEDX_CLUSTER": "nowhere"}, "no slurm/clusters/nowhere.env"),
        (("demo",), {"MEDX_CONTAINER": "./nowhere.sif"}, "MEDX_CONTAINER=./nowhere.sif, but no such file"),
    ],
    ids=["no recipe", "unknown key", "does not fit the allocation", "no cluster file", "no container"],
)
def test_a_refused_job_ends_with_code_2_and_says_so_once(submit, shell, tmp_path, words, environment, message):
    exports = ",".join(["ALL", *(f"{name}={value}" for name, value in environment.items())])
    folder = [f"run.folder={tmp_path / 'run'}"] if words else []
    job = submit("--nodes=2", f"--export={exports}", "slurm/pretrain.sh", *words, *folder)
    facts, said = job.ended(), f"\n{job.said()}"
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0"), said
    assert message in said and "Traceback" not in said, said
    assert [said.count(f"\n{part}") for part in ("found:", "needed:", "do:")] == [1, 1, 1], said
    assert not (tmp_path / "run").exists()


def test_a_host_that_sees_another_disk_is_named_before_training(submit, run_words, apart):
    """Where the run folder lies, node4 has a folder of its own: it would train, and save where nobody looks."""
    folder = apart / "run"
    size = ("--nodelist=node[2-4]", "--nodes=3", "--export=ALL,MEDX_GPUS_PER_NODE=1")  # of two, which one is right?
    words = (*run_words, "parallel.tensor=1", "training.global_batch_rows=3", f"run.folder={folder}")
    job = submit(*size, "slurm/pretrain.sh", "demo", *words)
    facts, said = job.ended(), job.said()
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0"), said
    [failed] = [event for event in events.read(folder) if event["event"] == "preflight_failed"]
    assert failed["hosts"] == ["node4"] and "node4" in said, said
    assert not (folder / "checkpoints").exists() and not (folder / "metrics.jsonl").exists()
