"""What a job does when a step of it has ended: a pure function of the run's events, srun's exit code and Slurm's word.

done       the last step is saved
again      ranks start anew in this job: one was killed, a step hung, the run was rolled back
requeue    the job waits in the queue to go on: it saved on a signal, or Slurm takes its nodes
stop CODE  a person must act: the configuration, too many failures, or the job was cancelled
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_medx.run_folder.events import AGAIN, INTERRUPTED
from megatron_medx.run_folder.progress import failures_without_progress

BEFORE_A_LAUNCH = ("job_started", "preflight_passed")
"""Events that a job writes before its ranks do."""

KILLED_BY_SIGNAL = 128
"""Exit codes of srun above it are those of tasks that a signal ended."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What Slurm says about this job."""

    state: str = "RUNNING"
    """JobState."""
    reason: str = "None"
    """Reason of the state."""
    restarts: int = 0
    """How often Slurm has requeued it, the coming start included."""
    may_requeue: bool = True
    """The job was submitted with --requeue, and the cluster allows it."""

    @classmethod
    def read(cls, text: str) -> "JobFacts":
        """From the line of `scontrol --oneliner show job`; what it lacks is as in a job that runs undisturbed."""
        facts = dict(re.findall(r"\b(JobState|Reason|Restarts|Requeue)=(\S+)", text))
        return cls(
            state=facts.get("JobState", "RUNNING"),
            reason=facts.get("Reason", "None"),
            restarts=int(facts.get("Restarts", 0)),
            may_requeue=facts.get("Requeue", "1") != "0",
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What comes next, and why."""

    word: str
    """`done`, `again`, `requeue` or `stop`."""
    why: str
    """For the event and the screen."""
    code: int = 0
    """The job's exit code, of `stop`."""
    events: tuple[tuple[str, dict], ...] = ()
    """(event, facts) to write before it is acted upon."""


def judge_launch(
    events: Sequence[dict], code: int, step: int | None, max_failures: int, job: JobFacts, restart: int
) -> Verdict:
    """Judge the end of a launch.

    Args:
        events: of the run, oldest first.
        code: exit code of the srun that started the ranks.
        step: the last one that metrics.jsonl tells of.
        max_failures: survival.max_failures.
        job: what Slurm says about the job now.
        restart: SLURM_RESTART_COUNT of this start.
    """
    launch = _last_launch(events)
    happened = {event["event"] for event in launch}
    failed = [event for event in launch if event["event"] == "failed"]
    if code == 0 or "finished" in happened:
        return Verdict("done", "finished")
    if job.restarts > restart:
        return Verdict("requeue", "Slurm has requeued the job: it was preempted, or a node failed")
    is_out_of_time = job.reason == "TimeLimit"
    if job.state != "RUNNING" and not is_out_of_time:
        return Verdict("stop", f"the job was cancelled; Slurm says {job.state}", code)
    if code == INTERRUPTED or "interrupted" in happened:
        return _requeue("the run saved on a signal", job)
    if code == 2 or any(event.get("code") == 2 for event in failed):
        return Verdict("stop", _why(failed, "the configuration, the data or a checkpoint was refused"), 2)

    news = ()
    if not failed and "hang" not in happened and code != AGAIN:
        why = "time limit before a save" if is_out_of_time else f"srun ended with code {code}, no rank said why"
        news = (("failed", {"step": _step(launch, step), "code": code, "rank": None, "why": why}),)
    told = [*events, *({"event": name, **facts} for name, facts in news)]
    failures = _failures(told)
    if failures >= max_failures:
        facts = {"step": _step(launch, step), "failures": failures}
        why = f"{failures} failures in succession without a new step"
        return Verdict("stop", why, 1, (*news, ("gave_up", facts)))
    if is_out_of_time:
        verdict = _requeue("the time limit came before a save", job)
        return Verdict(verdict.word, verdict.why, verdict.code, news)
    return Verdict("again", _why([*failed, *(facts for _, facts in news)], "the ranks asked for it"), events=news)


def judge_preflight(code: int, job: JobFacts, restart: int) -> Verdict:
    """Judge a preflight that did not pass; it has said by itself what is wrong."""
    if job.restarts > restart:
        return Verdict("requeue", "Slurm has requeued the job: it was preempted, or a node failed")
    if job.state != "RUNNING" and job.reason != "TimeLimit":
        return Verdict("stop", f"the job was cancelled; Slurm says {job.state}", code)
    if code in (KILLED_BY_SIGNAL + 10, KILLED_BY_SIGNAL + 15):  # SIGUSR1, SIGTERM
        return _requeue("a signal came during the preflight", job)
    return Verdict("stop", f"the preflight failed with code {code}", code)


def _requeue(why: str, job: JobFacts) -> Verdict:
    if job.may_requeue:
        return Verdict("requeue", why)
    return Verdict("stop", f"{why}, but Slurm may not requeue the job: submit the same again to go on", INTERRUPTED)


def _last_launch(events: Sequence[dict]) -> list[dict]:
    """Events of the launch that ended: from its `launched`, or from what came before it where no rank got so far."""
    first = 0
    for index, event in enumerate(events):
        if event["event"] in ("launched", *BEFORE_A_LAUNCH):
            first = index
    return list(events[first:])


def _failures(events: Sequence[dict]) -> int:
    """Failures in succession; launches that did not get as far as `launched` have all failed at the same point."""
    before_launching = 0
    for event in events:
        if event["event"] in ("launched", "gave_up"):
            before_launching = 0
        elif event["event"] == "failed":
            before_launching += event.get("rank") is None
    return max(failures_without_progress(events), before_launching)


def _step(launch: Sequence[dict], step: int | None) -> int | None:
    """The step that the launch reached: metrics.jsonl may end with a line of the launch before."""
    if any(event["event"] == "first_step" for event in launch):
        return step
    return next((event.get("resumed_from") for event in launch if event["event"] == "launched"), None)


def _why(failed: Sequence[dict], otherwise: str) -> str:
    return next((event["why"] for event in failed if event.get("why")), otherwise)
