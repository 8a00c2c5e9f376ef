"""What is written after a job step, and when the folder is given back."""

import pytest

from megatron_medx import cli
from megatron_medx.run_folder import events, lock

RUNNING = "JobId=17 JobState=RUNNING Reason=None Requeue=1 Restarts=0"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that job 17 holds, after a launch that did step 7."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    for name in ("SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    lock.acquire(tmp_path)
    for event in ("job_started", "preflight_passed", "launched", "first_step"):
        events.append(tmp_path, event)
    (tmp_path / "metrics.jsonl").write_text('{"step": 6}\n{"step": 7}\n{"ste')
    return tmp_path


def following(run, capsys, *words):
    """Last line of `medx job next`, and the events that it added."""
    before = len(events.read(run))
    assert cli.main(["job", "next", str(run), "--job", RUNNING, *words]) == 0
    added = [(event.pop("event"), event) for event in events.read(run)[before:] if event.pop("time")]
    return capsys.readouterr().out.splitlines()[-1], added


def test_a_killed_rank_is_written_down_and_the_job_goes_on(run, capsys):
    said, added = following(run, capsys, "--code", "137")
    assert said == "again"
    assert added == [
        ("failed", {"step": 7, "code": 137, "rank": None, "why": "srun ended with code 137, no rank said why"})
    ]
    assert lock.is_ours(run)


def test_a_requeued_job_keeps_the_folder(run, capsys):
    said, added = following(run, capsys, "--code", "75")
    assert (said, added) == ("requeue", [("job_requeued", {"job": "17", "why": "the run saved on a signal"})])
    assert lock.is_ours(run)


@pytest.mark.parametrize(
    ("words", "said", "ended"),
    [
        (("--code", "0"), "done", {"code": 0, "why": "finished"}),
        (("--code", "2"), "stop 2", {"code": 2, "why": "the configuration, the data or a checkpoint was refused"}),
        (("--of", "preflight", "--code", "2"), "stop 2", {"code": 2, "why": "the preflight failed with code 2"}),
    ],
)
def test_a_job_that_ends_gives_the_folder_back(run, capsys, words, said, ended):
    assert following(run, capsys, *words) == (said, [("job_ended", {"job": "17", **ended})])
    assert not (run / "lock.json").exists()
