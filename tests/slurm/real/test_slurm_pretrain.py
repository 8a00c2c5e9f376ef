"""slurm/pretrain.sh on a real Slurm: tasks of srun train as the ranks of one machine, and a refusal ends the job."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_jobs import TWO_BY_TWO

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
    assert [line["step"] for line in ours] == [line["step"] for line in reference] == [1, 2, 3, 4, 5, 6]
    assert [line["samples_crc"] for line in ours] == [line["samples_crc"] for line in reference]
    losses = [(line["loss"], other["loss"]) for line, other in zip(ours, reference, strict=True)]
    assert all(abs(loss - other) <= LOSS_TOLERANCE for loss, other in losses), losses


def test_every_node_has_its_tasks(trained):
    job, folder = trained
    facts = job.facts()
    assert (facts["NodeList"], facts["NumTasks"]) == ("node[1-2]", "4")
    assert f"job {job.number}: 4 tasks on 2 nodes, meeting on node1" in job.said()
    assert job.said().count("\nrun  ") == 1  # one task describes the run
    assert sorted(log.name for log in folder.glob("logs/rank_*.log")) == [f"rank_{rank}.log" for rank in range(4)]
    assert (folder / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "6"


@pytest.mark.parametrize(
    ("words", "message", "speakers"),
    [
        ([], "found:  no recipe", 1),
        (["demo", "paralel.tensor=2"], "did you mean parallel.tensor", 4),
    ],
    ids=["before srun", "by every task"],
)
def test_a_refused_job_ends_with_code_2(submit, words, message, speakers):
    """What every task refuses, every task says that srun has not ended before."""
    job = submit(*TWO_BY_TWO, "slurm/pretrain.sh", *words)
    facts, said = job.ended(), job.said()
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0"), said
    assert message in said and "Traceback" not in said, said
    for part in ("found:", "needed:", "do:"):
        assert 1 <= said.count(part) <= speakers, said
