"""The lock of a run folder: one of racing processes gets it, dead holders are replaced, whom nobody can ask stays."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from megatron_medx.errors import ConfigError
from megatron_medx.run_folder import events, lock

RACER = """
import sys, time
from pathlib import Path
from megatron_medx.errors import ConfigError
from megatron_medx.run_folder import lock
folder, start = Path(sys.argv[1]), float(sys.argv[2])
while time.time() < start:
    pass
try:
    lock.acquire(folder)
except ConfigError:
    sys.exit(3)
print("mine", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch, tmp_path):
    """A shell outside of any job, without Slurm's commands."""
    for name in ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME", lock.LIVE_JOBS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def scontrol(tmp_path):
    """Function (what it prints, to stderr, exit code): a stand-in for Slurm's."""

    def write(says, complains="", code=0):
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin" / "scontrol"
        program.write_text(f"#!/bin/bash\necho '{says}'\necho '{complains}' >&2\nexit {code}\n")
        program.chmod(0o755)

    return write


def in_job(monkeypatch, number, cluster="moon"):
    monkeypatch.setenv("SLURM_JOB_ID", number)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", cluster)


def held_by(folder, **holder):
    folder.mkdir(exist_ok=True)
    (folder / "lock.json").write_text(json.dumps({"id": "old", "since": "2026-01-01T00:00:00Z", **holder}))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_is_taken_kept_and_given_back(tmp_path):
    folder = tmp_path / "runs" / "new"
    lock.acquire(folder)
    lock.acquire(folder)  # the same process
    assert names(folder) == ["lock.json"]
    assert lock.is_ours(folder) and lock.live_holder(folder) is None
    lock.release(folder)
    assert names(folder) == [] and not lock.is_ours(folder)
    lock.release(folder)


@pytest.mark.parametrize("stale", [False, True], ids=["free", "of a dead process"])
def test_of_racing_processes_one_wins(tmp_path, stale):
    folder = tmp_path / "run"
    if stale:
        held_by(folder, host=socket.gethostname(), boot="before", pid=1, started="1")
    start = time.time() + 0.7
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, folder, str(start)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    said = []
    for racer in racers:
        said.append(racer.stdout.readline())  # empty of one that gave up
    try:
        assert sorted(said) == [""] * 5 + ["mine\n"]
        assert names(folder) == (["events.jsonl", "lock.json"] if stale else ["lock.json"])
        assert [line["event"] for line in events.read(folder)] == ["lock_taken_over"] * stale
        assert "process" in lock.live_holder(folder)
    finally:
        for racer in racers:
            racer.stdin.close()
            racer.stdout.close()
            racer.wait()
    assert sorted(racer.returncode for racer in racers) == [0] + [3] * 5
    assert lock.live_holder(folder) is None  # the winner died without releasing
    lock.acquire(folder)
    assert lock.is_ours(folder)


def test_a_live_process_is_not_disturbed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        held_by(tmp_path, host=socket.gethostname(), boot=lock._boot(), pid=other.pid, started=lock._started(other.pid))
        with pytest.raises(
            ConfigError, match=rf"found:  process {other.pid} on .* holds .*\nneeded: one writer"
        ) as hit:
            lock.acquire(tmp_path)
        assert f"kill {other.pid} there" in str(hit.value)
        lock.release(tmp_path)
        assert names(tmp_path) == ["lock.json"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"started": "12"}, "the process is gone"),  # its id was given to another
        ({"boot": "an earlier one"}, "its machine was started anew"),
        ({"pid": 2**22 + 1}, "the process is gone"),
    ],
)
def test_of_a_dead_process_it_is_taken_over(tmp_path, change, why):
    here = {"host": socket.gethostname(), "boot": lock._boot(), "pid": os.getppid()}
    held_by(tmp_path, **{**here, "started": lock._started(os.getppid()), **change})
    assert lock.live_holder(tmp_path) is None
    lock.acquire(tmp_path)
    assert lock.is_ours(tmp_path)
    (event,) = events.read(tmp_path)
    assert event["event"] == "lock_taken_over" and event["why"] == why and "process" in event["holder"]
    assert names(tmp_path) == ["events.jsonl", "lock.json"]


@pytest.mark.parametrize(
    "text", ['{"id": "a", "since": "b", "host": "elsewhere", "boot": "c", "pid": 1, "started": "1"}', "", "no JSON"]
)
def test_who_cannot_be_asked_counts_as_alive(tmp_path, text):
    (tmp_path / "lock.json").write_text(text)
    with pytest.raises(ConfigError, match=r"rm .*lock\.json"):
        lock.acquire(tmp_path)


def test_a_taker_that_died_half_way_is_taken_over_too(tmp_path):
    dead = {"host": socket.gethostname(), "boot": "before", "pid": 1, "started": "1"}
    held_by(tmp_path, **dead)
    turn = tmp_path / "lock.json.after-old"
    turn.write_text(json.dumps({"id": "half", "since": "b", **dead}))
    lock.acquire(tmp_path)
    assert lock.is_ours(tmp_path)
    assert names(tmp_path) == ["events.jsonl", "lock.json"]


def test_all_of_a_job_hold_it_from_any_host_and_after_a_requeue(tmp_path, monkeypatch):
    in_job(monkeypatch, "17")
    lock.acquire(tmp_path)
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    lock.acquire(tmp_path)
    lock.release(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("state", ["PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUE_HOLD"])
def test_a_job_that_slurm_still_has_keeps_it(tmp_path, monkeypatch, scontrol, state):
    held_by(tmp_path, job="16", cluster="moon")
    scontrol(f"JobId=16 JobName=medx JobState={state} Reason=None")
    in_job(monkeypatch, "17")
    assert lock.live_holder(tmp_path) == "Slurm job 16 of cluster moon"
    with pytest.raises(ConfigError, match="scancel 16"):
        lock.acquire(tmp_path)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        *((("JobState=" + state,), f"the job is {state}") for state in ("COMPLETED", "TIMEOUT", "NODE_FAIL")),
        (("", "slurm_load_jobs error: Invalid job id specified", 1), "Slurm has no such job any more"),
    ],
)
@pytest.mark.parametrize("number", ["17", None], ids=["by a job", "by a shell"])
def test_of_a_job_that_ended_it_is_taken_over(tmp_path, monkeypatch, scontrol, answer, why, number):
    held_by(tmp_path, job="16", cluster="moon")
    scontrol(*answer)
    if number:
        in_job(monkeypatch, number)
    lock.acquire(tmp_path)
    assert lock.is_ours(tmp_path)
    assert events.read(tmp_path)[0]["why"] == why


def test_a_job_that_is_being_ended_is_waited_for(tmp_path, monkeypatch, scontrol):
    held_by(tmp_path, job="16", cluster="moon")
    scontrol("JobState=COMPLETING")
    in_job(monkeypatch, "17")
    sleep = time.sleep  # of which subprocess makes use as well
    monkeypatch.setattr(
        lock.time, "sleep", lambda s: scontrol("JobState=CANCELLED") if s == lock.ASK_AGAIN_S else sleep(s)
    )
    lock.acquire(tmp_path)
    assert lock.is_ours(tmp_path)


@pytest.mark.parametrize("asked", ["no scontrol", "no answer", "another cluster"])
def test_without_an_answer_of_slurm_a_job_counts_as_alive(tmp_path, monkeypatch, scontrol, asked):
    held_by(tmp_path, job="16", cluster="moon")
    in_job(monkeypatch, "17", cluster="sun" if asked == "another cluster" else "moon")
    if asked == "no answer":
        scontrol("", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", 1)
    elif asked == "another cluster":
        scontrol("", "slurm_load_jobs error: Invalid job id specified", 1)
    with pytest.raises(ConfigError, match="Slurm job 16"):
        lock.acquire(tmp_path)


@pytest.mark.parametrize(("jobs", "lives"), [("15 16 17", True), ("160 17", False), ("", False)])
def test_in_a_container_the_script_says_which_jobs_live(tmp_path, monkeypatch, jobs, lives):
    held_by(tmp_path, job="16", cluster="moon")
    in_job(monkeypatch, "17")
    monkeypatch.setenv(lock.LIVE_JOBS, jobs)
    assert (lock.live_holder(tmp_path) is not None) == lives
