"""Who is to blame for a phase that does not end: who failed by itself, else who is behind all others."""

import json
import time

import torch.distributed as dist

from megatron_medx.preflight import lead
from megatron_medx.preflight.meeting import Meeting
from megatron_medx.preflight.steps import STEPS

STEP = next(step for step in STEPS if step.name == "links")


def blame(answers, doings, num_tasks=6):
    """Findings of a phase in which tasks answered so, and others were last heard of at (number, what)."""
    meeting = Meeting(dist.HashStore(), 0, num_tasks)
    for rank, doing in doings.items():
        Meeting(meeting.store, rank, num_tasks).doing(json.dumps(doing))
    known = {rank: {"rank": rank, "host": f"node{rank // 2 + 1}", "local_rank": rank % 2} for rank in range(num_tasks)}
    for rank, answer in answers.items():
        known[rank] |= answer
    return lead._unanswered(STEP, 30.0, answers, known, meeting)


def test_who_is_behind_is_blamed_and_the_others_only_counted():
    doings = {1: (8, "a sum with node3"), 2: (7, "a sum with node1"), 3: (8, "a sum with node3"), 4: (8, "a sum")}
    (finding,) = blame({0: {}, 5: {}}, doings)
    assert finding.hosts == ("node2",) and finding.blocks
    assert "1 tasks hang or are gone (node2, task 0: a sum with node1); 3 others waited" in finding.found


def test_who_failed_by_itself_is_blamed_before_those_that_wait():
    answers = {0: {"failed": "RuntimeError: uncorrectable ECC error"}, 1: {"failed": "Connection closed by peer"}}
    (finding,) = blame(answers, dict.fromkeys(range(2, 6), (8, "a sum")))
    assert finding.hosts == ("node1",) and "node1, task 0: RuntimeError: uncorrectable" in finding.found


def test_who_lost_its_peer_is_not_blamed_while_another_is_silent():
    answers = {rank: {"failed": "Connection closed by peer"} for rank in (0, 1)} | {4: {}, 5: {}, 2: {}}
    (finding,) = blame(answers, {3: (8, "a sum with node1")})
    assert finding.hosts == ("node2",) and "2 others waited for them or lost their connection" in finding.found


def test_lost_connections_alone_are_said_once():
    answers = {rank: {"failed": "Connection reset"} for rank in range(6)}
    (finding,) = blame(answers, {})
    assert finding.hosts == ("node1", "node2", "node3")


def test_all_that_answered_are_well():
    assert blame({rank: {} for rank in range(6)}, {}) == []


def test_others_get_a_moment_after_a_failure(monkeypatch):
    monkeypatch.setattr(lead, "GRACE_S", 0.1)
    is_enough = lead._some_failed()
    assert not is_enough({0: {"failed": "Connection closed by peer"}})
    answers = {0: {"failed": "ZeroDivisionError"}}
    assert not is_enough(answers)
    deadline = time.monotonic() + 10
    while not is_enough(answers):
        assert time.monotonic() < deadline
