"""What is known of a submitted job: Slurm's words, the accounts' or the run's own, and when it counts as over."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from megatron_medx.errors import ConfigError
from megatron_medx.launch import outcome
from megatron_medx.launch.clusters import Cluster
from megatron_medx.launch.commit import Commit
from megatron_medx.launch.outcome import UNKNOWN, follow, look_script, read_looks
from megatron_medx.launch.submission import Copy, Submitted
from megatron_medx.launch.tunnel import NoAnswer

JOB = Submitted("17", 2, "runs/demo-slurm")
FACTS = "JobId=17 JobName=medx-demo UserId=me(0) JobState={} Reason={} Requeue=1 Restarts=0 ExitCode={} StdOut=/a b\n"
STEP = '{"step": 4, "loss": 2.5, "tokens": 900}\n'


def said(state="RUNNING", reason="None", code="0:0", more=STEP, number="17"):
    return f"== medx job {number}\n{FACTS.format(state, reason, code)}{more}"


def look(text):
    return read_looks(text, [JOB])["17"]


def test_a_job_that_runs():
    found = look("the login shell greets\n" + said())
    assert (found.state, found.reason, found.step, found.loss, found.is_over) == ("RUNNING", "", 4, 2.5, False)
    assert found.text(20) == "RUNNING, step 4 of 20, loss 2.5000"


def test_a_job_that_waits():
    assert look(said("PENDING", "Resources", more="")).text(20) == "PENDING (Resources)"


@pytest.mark.parametrize(
    ("text", "state", "code", "succeeded"),
    [
        (said("COMPLETED"), "COMPLETED", 0, True),
        (said("FAILED", "NonZeroExitCode", "2:0"), "FAILED", 2, False),
        (said("CANCELLED", code="0:15"), "CANCELLED", 128 + 15, False),
        (said("COMPLETED", code="1:0"), "COMPLETED", 1, False),
        ("== medx job 17\nCOMPLETED|0:0\n" + STEP, "COMPLETED", 0, True),
        ("== medx job 17\nCANCELLED by 0|0:15\n", "CANCELLED", 143, False),
        ("== medx job 17\n", UNKNOWN, 0, False),
        ("", UNKNOWN, 0, False),
    ],
)
def test_a_job_that_is_over(text, state, code, succeeded):
    found = look(text)
    assert found.is_over and (found.state, found.code, found.succeeded) == (state, code, succeeded)


def test_a_job_that_slurm_forgot_is_judged_by_its_run():
    ended = {"event": "job_ended", "job": "17", "code": 0, "why": "finished", "step": 9}
    found = look(f"== medx job 17\n{STEP}{json.dumps(ended)}\n")
    assert found.succeeded and found.step == 4 and found.why == "finished"
    found = look(f"== medx job 17\n{json.dumps(ended | {'code': 3})}\n")
    assert (found.state, found.code, found.succeeded) == ("FAILED", 3, False)
    assert look(f"== medx job 17\n{json.dumps(ended | {'job': '16'})}\n").state == UNKNOWN  # of an earlier job


def test_lines_that_are_cut_off_say_nothing():
    assert look(said(more='{"step": 4, "lo')).step is None
    assert look(said(more='{"step": 4, "loss": null}\n')).loss is None


@pytest.fixture
def copy(tmp_path):
    return Copy(Cluster("ours", None, None, str(tmp_path)), Commit("a" * 40, "", 1, 1))


class FakeTunnel:
    """Answers in turn; an error among the answers is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def run(self, script):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(out=answer)


def follow_all(copy, *answers, jobs=(JOB,)):
    lines, tunnel = [], FakeTunnel(*answers)
    ends = follow(tunnel, copy, jobs, {job.number: 20 for job in jobs}, lines.append, every_s=1e-9)
    assert not tunnel.answers
    return ends, [line.partition("  ")[2] for line in lines]


def test_it_is_told_of_when_its_state_changes(copy):
    ends, lines = follow_all(copy, said("PENDING", "Priority", more=""), said(), said(), said("COMPLETED"))
    assert ends["17"].succeeded
    assert lines == [
        "job 17  runs/demo-slurm  PENDING (Priority)",
        "job 17  runs/demo-slurm  RUNNING, step 4 of 20, loss 2.5000",
        "job 17  runs/demo-slurm  COMPLETED, step 4 of 20, loss 2.5000",
    ]


def test_a_failure_that_is_requeued_is_none(copy):
    ends, _ = follow_all(copy, said(), said("NODE_FAIL"), said("PENDING", "BeginTime"), said(), said("COMPLETED"))
    assert ends["17"].succeeded
    ends, _ = follow_all(copy, said("FAILED", code="1:0"), said("FAILED", code="1:0"))
    assert not ends["17"].succeeded


def test_jobs_that_are_over_are_asked_about_no_more(copy):
    other = Submitted("18", 2, "runs/b")
    ends, _ = follow_all(copy, said("COMPLETED") + said(number="18"), said("COMPLETED", number="18"), jobs=(JOB, other))
    assert ends["17"].succeeded and ends["18"].succeeded


def test_a_connection_that_is_lost_is_made_again(copy, monkeypatch):
    lost = NoAnswer("login: no connection: gone", "needed", "do")
    ends, lines = follow_all(copy, lost, lost, said("COMPLETED"))
    assert ends["17"].succeeded and len(lines) == 2
    monkeypatch.setattr(outcome, "LOST_S", 0.0)
    with pytest.raises(ConfigError, match="no connection for 0 s: login: no connection: gone"):
        follow_all(copy, lost, lost)


def test_the_script_reads_what_a_run_writes(copy, tmp_path):
    """Run by bash: without Slurm, of a run that is there and one that is not."""
    run = tmp_path / "runs" / "a b"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"step": 2, "loss": 8.0}\n')
    events = [
        {"event": "job_ended", "job": "16", "code": 1},
        {"event": "job_ended", "job": "17", "code": 0, "why": "ok"},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    jobs = [Submitted("17", 1, "runs/a b"), Submitted("18", 1, "runs/none")]
    done = subprocess.run(
        ["/bin/bash", "-c", look_script(copy, jobs)], env={"PATH": "/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr
    found = read_looks(done.stdout, jobs)
    assert found["17"].succeeded and (found["17"].step, found["17"].loss) == (2, 8.0)
    assert found["18"].state == UNKNOWN
