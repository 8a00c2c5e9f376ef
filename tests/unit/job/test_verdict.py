"""What a job does after each way in which a launch or a preflight ends: one row each."""

import pytest

from megatron_medx.job.verdict import JobFacts, judge_launch, judge_preflight
from megatron_medx.run_folder.events import AGAIN, INTERRUPTED

BEGUN = [("job_started", {}), ("preflight_passed", {})]
LAUNCHED = [*BEGUN, ("launched", {"resumed_from": 4}), ("first_step", {"step": 5})]
FAILED = {"step": 7, "code": 1, "rank": 3, "why": "rank 3 lost its disk"}
UNDISTURBED, OUT_OF_TIME = JobFacts(), JobFacts(state="COMPLETING", reason="TimeLimit")
KILLED = ("failed", {"step": 7, "code": 137, "rank": None, "why": "srun ended with code 137, no rank said why"})


def judge(told, code, job=UNDISTURBED, restart=0, max_failures=3, step=7):
    events = [{"event": name, **facts} for name, facts in told]
    return judge_launch(events, code, step, max_failures, job, restart)


@pytest.mark.parametrize(
    ("told", "code", "job", "word", "why"),
    [
        ([*LAUNCHED, ("finished", {"step": 9})], 0, JobFacts(), "done", "finished"),
        # a rank was killed on its way out, behind the last save
        ([*LAUNCHED, ("finished", {"step": 9})], 137, JobFacts(), "done", "finished"),
        ([*LAUNCHED, ("interrupted", {"step": 7})], INTERRUPTED, JobFacts(), "requeue", "the run saved on a signal"),
        ([*LAUNCHED, ("interrupted", {"step": 7})], 143, JobFacts(), "requeue", "the run saved on a signal"),
        ([*LAUNCHED, ("interrupted", {"step": 7})], INTERRUPTED, OUT_OF_TIME, "requeue", "the run saved on a signal"),
        (LAUNCHED, 143, OUT_OF_TIME, "requeue", "the time limit came before a save"),
        (LAUNCHED, 143, JobFacts(state="COMPLETING", restarts=1), "requeue", "Slurm has requeued the job: it was"),
        ([*LAUNCHED, ("hang", {"step": 7})], AGAIN, JobFacts(), "again", "the ranks asked for it"),
        ([*LAUNCHED, ("rolled_back", {"to_step": 4})], AGAIN, JobFacts(), "again", "the ranks asked for it"),
        ([*LAUNCHED, ("failed", FAILED)], 1, JobFacts(), "again", "rank 3 lost its disk"),
        (LAUNCHED, 137, JobFacts(), "again", "srun ended with code 137, no rank said why"),
        (BEGUN, 1, JobFacts(), "again", "srun ended with code 1, no rank said why"),
    ],
)
def test_what_goes_on(told, code, job, word, why):
    verdict = judge(told, code, job)
    assert (verdict.word, verdict.code) == (word, 0)
    assert verdict.why.startswith(why)


@pytest.mark.parametrize(
    ("told", "code", "job", "job_code", "why"),
    [
        (LAUNCHED, 2, JobFacts(), 2, "the configuration, the data or a checkpoint was refused"),
        ([*LAUNCHED, ("failed", {**FAILED, "code": 2})], 143, JobFacts(), 2, "rank 3 lost its disk"),
        (LAUNCHED, 143, JobFacts(state="COMPLETING"), 143, "the job was cancelled; Slurm says COMPLETING"),
        (
            [*LAUNCHED, ("interrupted", {})],
            75,
            JobFacts(state="CANCELLED"),
            75,
            "the job was cancelled; Slurm says CANCELLED",
        ),
        ([*LAUNCHED, ("interrupted", {})], 75, JobFacts(may_requeue=False), 75, "the run saved on a signal, but Slurm"),
    ],
)
def test_what_stops(told, code, job, job_code, why):
    verdict = judge(told, code, job)
    assert (verdict.word, verdict.code) == ("stop", job_code)
    assert verdict.why.startswith(why)


def test_a_killed_rank_is_told_of_once():
    """Who was killed says nothing; where a rank said why, nothing is added."""
    assert judge(LAUNCHED, 137).events == (KILLED,)
    assert judge([*LAUNCHED, ("failed", FAILED)], 137).events == ()
    assert judge([*LAUNCHED, ("hang", {"step": 7})], 137).events == ()


def test_the_step_is_that_of_this_launch():
    before_its_first_step = [*LAUNCHED, ("failed", FAILED), *BEGUN, ("launched", {"resumed_from": 4})]
    [(_, facts)] = judge(before_its_first_step, 137, step=7).events
    assert facts["step"] == 4
    [(_, facts)] = judge(BEGUN, 1, step=7).events
    assert facts["step"] is None


def fail_again_and_again(launch, max_failures=3):
    """Words of the verdicts on launches that all end with code 137 in the same way."""
    told, words = [], []
    while not words or words[-1] == "again":
        told += launch
        verdict = judge(told, 137, max_failures=max_failures)
        told += verdict.events
        words.append(verdict.word)
    return words, told, verdict


@pytest.mark.parametrize("launch", [LAUNCHED, LAUNCHED[:3], BEGUN], ids=["same step", "no step", "never launched"])
@pytest.mark.parametrize("max_failures", [1, 3])
def test_failures_without_a_new_step_end_the_job(launch, max_failures):
    words, told, verdict = fail_again_and_again(launch, max_failures)
    assert words == ["again"] * (max_failures - 1) + ["stop"] and verdict.code == 1
    assert told[-1][0] == "gave_up" and told[-1][1]["failures"] == max_failures
    # a person submits the same again: it counts anew
    assert judge([*told, *launch], 137, max_failures=2).word == "again"


def test_a_time_limit_too_short_for_a_save_does_not_go_on_for_ever():
    told, words = [], []
    for _ in range(3):
        told += LAUNCHED
        verdict = judge(told, 143, OUT_OF_TIME)
        told += verdict.events
        words.append(verdict.word)
    assert words == ["requeue", "requeue", "stop"]


def test_hangs_count_as_failures():
    told = [*LAUNCHED, ("hang", {"step": 7})] * 3
    assert judge(told, AGAIN).word == "stop"


@pytest.mark.parametrize(
    ("code", "job", "word", "job_code"),
    [
        (2, JobFacts(), "stop", 2),
        (1, JobFacts(), "stop", 1),
        (138, JobFacts(), "requeue", 0),  # SIGUSR1
        (143, JobFacts(), "requeue", 0),
        (143, OUT_OF_TIME, "requeue", 0),
        (137, JobFacts(), "stop", 137),
        (143, JobFacts(state="COMPLETING"), "stop", 143),
        (143, JobFacts(state="COMPLETING", restarts=1), "requeue", 0),
        (138, JobFacts(may_requeue=False), "stop", INTERRUPTED),
    ],
)
def test_after_a_preflight(code, job, word, job_code):
    verdict = judge_preflight(code, job, restart=0)
    assert (verdict.word, verdict.code) == (word, job_code)


def test_a_job_that_was_requeued_before_is_not_requeued_now():
    assert judge(LAUNCHED, 137, JobFacts(restarts=2), restart=2).word == "again"


def test_facts_are_read_from_scontrol():
    text = "JobId=7 JobName=a JobState=COMPLETING Reason=TimeLimit Dependency=(null) Requeue=0 Restarts=3 BatchFlag=1"
    assert JobFacts.read(text) == JobFacts("COMPLETING", "TimeLimit", 3, may_requeue=False)
    assert JobFacts.read("") == JobFacts("RUNNING", "None", 0, may_requeue=True)
