"""Rank 0's part: gathers what all tasks found, phase by phase, judges it, and says whether to go on.

It runs in the main thread of rank 0, while that rank's own work, which may hang, is done in another one.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_medx.preflight import judge_hosts, judge_speed
from megatron_medx.preflight.facts import disk_needs
from megatron_medx.preflight.finding import Finding, by_host, leave_out, shortened, task_name
from megatron_medx.preflight.meeting import Meeting
from megatron_medx.preflight.place import WHOLE_S, Place
from megatron_medx.preflight.shared_files import remove_all
from megatron_medx.preflight.steps import GO, STEPS, STOP, Step

GRACE_S = 3.0
"""Seconds that others get to answer after one has failed by itself: most of them then wait for it in vain."""

LOST = ("by peer", "remote process", "Connection reset", "Broken pipe")
"""In errors of gloo, NCCL and sockets: the other side is gone."""

Facts = Sequence[Mapping]


@dataclass
class Outcome:
    """What came of it."""

    findings: list[Finding] = field(default_factory=list)
    known: dict[int, dict] = field(default_factory=dict)
    """Rank -> all that it found."""
    took_s: float = 0.0

    @property
    def stops(self) -> list[Finding]:
        """Findings that the run must not start with."""
        return [finding for finding in self.findings if finding.stops]

    @property
    def hosts(self) -> dict[str, list[Mapping]]:
        """Host -> facts of its tasks."""
        return by_host(self.known.values())


def lead(place: Place, folder: Path, meeting: Meeting, token: str, patience_s: float) -> Outcome:
    """Go through all phases with all tasks; returns when all are done, or one makes the others impossible.

    Args:
        place: of rank 0.
        folder: of the run; disks are measured against its run.yaml, if it is there.
        meeting: a connection of this thread alone.
        token: what hosts write into the run folder; of this attempt only.
        patience_s: seconds for the tasks to arrive; phases have limits of their own.
    """
    start, outcome = time.monotonic(), Outcome()
    meeting.tell("token", token)
    judges = _judges(place, folder, patience_s)
    for step in STEPS:
        left_s = max(1.0, WHOLE_S - (time.monotonic() - start))
        limit_s = min(left_s, patience_s if step.name == "arrive" else step.limit_s)
        answers = meeting.gather(step.name, limit_s, _some_failed())
        for rank, answer in answers.items():
            outcome.known.setdefault(rank, {}).update(answer)
        blocked = [] if step.name == "arrive" else _unanswered(step, limit_s, answers, outcome.known, meeting)
        found = blocked or judges[step.name]([fact for _, fact in sorted(outcome.known.items())])
        outcome.findings += found
        if step.name == "arrive":
            hosts = {host: [fact["rank"] for fact in tasks] for host, tasks in outcome.hosts.items()}
            meeting.tell("ranks", json.dumps(hosts))
        if step.name == "read" or (blocked and step.name == "write"):
            remove_all(folder, list(outcome.hosts))
        is_over = any(finding.blocks for finding in found)
        meeting.tell(step.name, STOP if is_over else GO)
        if is_over:
            break
    outcome.took_s = time.monotonic() - start
    return outcome


def _judges(place: Place, folder: Path, patience_s: float) -> dict[str, Callable[[Facts], list[Finding]]]:
    """Phase -> what judges the facts of all tasks after it."""

    def hosts(facts: Facts) -> list[Finding]:
        needs = disk_needs(folder, max(len(tasks) for tasks in by_host(facts).values()))
        return [
            *judge_hosts.gpus(facts),
            *judge_hosts.gpu_health(facts),
            *judge_hosts.versions(facts),
            *judge_hosts.disks(facts, needs),
            *judge_hosts.limits(facts),
            *judge_hosts.clocks(facts),
        ]

    return {
        "arrive": lambda facts: judge_hosts.missing_tasks(facts, place.size, place.tasks_by_host, patience_s),
        "host": hosts,
        "write": lambda facts: [],
        "read": judge_hosts.shared_files,
        "multiply": judge_speed.products,
        "in_host": judge_speed.sums_in_hosts,
        "links": judge_speed.links,
        "all": judge_speed.sum_over_all,
    }


def _some_failed() -> Callable[[dict[int, dict]], bool]:
    """A rule for `gather`: enough when somebody has failed for GRACE_S."""
    since: list[float] = []

    def is_enough(answers: dict[int, dict]) -> bool:
        if not since and any(_failed_itself(answer) for answer in answers.values()):
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] > GRACE_S

    return is_enough


def _failed_itself(fact: Mapping) -> bool:
    """Whether a task met an error that is not the end of another one, as gloo and NCCL report it."""
    return "failed" in fact and not any(words in fact["failed"] for words in LOST)


def _unanswered(
    step: Step, limit_s: float, answers: Mapping[int, dict], known: Mapping[int, dict], meeting: Meeting
) -> list[Finding]:
    """Tasks that failed, else those that did not answer and are behind the others; either makes going on impossible."""
    failed = {rank: known[rank] for rank, answer in answers.items() if "failed" in answer}
    guilty = {rank: fact for rank, fact in failed.items() if _failed_itself(fact)}
    silent = {rank: json.loads(meeting.last_doing(rank)) for rank in known if rank not in answers}
    if guilty or not silent:
        return _failures(step, guilty or failed)
    behind = min(number for number, _ in silent.values())
    blamed = {rank: what for rank, (number, what) in silent.items() if number == behind}
    hosts = tuple(dict.fromkeys(known[rank]["host"] for rank in blamed))
    tasks = shortened(f"{task_name(known[rank])}: {what}" for rank, what in blamed.items())
    others = len(silent) - len(blamed) + len(failed)
    waiting = f"; {others} others waited for them or lost their connection" if others else ""
    return [
        Finding(
            f"{len(blamed)} tasks hang or are gone ({tasks}){waiting}",
            f"an answer within {limit_s:.0f} s",
            leave_out(hosts),
            hosts,
            blocks=True,
        )
    ]


def _failures(step: Step, facts: Mapping[int, Mapping]) -> list[Finding]:
    """One finding for each thing that was raised, with all the tasks that it was raised in."""
    said: dict[str, list[Mapping]] = {}
    for fact in facts.values():
        said.setdefault(fact["failed"], []).append(fact)
    return [
        Finding(
            f"{step.what} failed on {shortened(task_name(fact) for fact in facts)}: {text}",
            f"{step.what} that ends without an error",
            f"if the error is of the host: {leave_out(fact['host'] for fact in facts)}",
            tuple(dict.fromkeys(fact["host"] for fact in facts)),
            blocks=True,
        )
        for text, facts in said.items()
    ]
