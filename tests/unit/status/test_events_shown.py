"""Every event of the vocabulary changes what `medx status` says, but those that are listed here."""

import json
import re

import pytest

from megatron_medx.run_folder.events import EVENTS
from megatron_medx.status.lines import status_lines

NOT_SHOWN: set[str] = set()
"""None: each is a word in the state or a line of its own."""

FACTS = {
    "job": "12", "restart": 1, "tasks": 2, "hosts": ["node7"], "why": "because", "code": 1, "holder": "job 11",
    "took_s": 7.0, "problems": ["a problem"], "before": 8, "now": 4, "step": 33, "failures": 3, "ranks": 2,
    "resumed_from": 20, "start_s": 9.0, "save_s": 0.25, "bytes": 702, "moved_to": "damaged-iter_0000033",
    "signal": "SIGUSR1", "rank": 1, "host": "node7", "waited_s": 300.0, "median_s": 0.5, "what": "spike", "loss": 8.5,
    "applied": True, "to_step": 20, "from_step": 33, "first_row": 64, "last_row": 87, "passed": False, "gap": 0.0123,
    "max_gap": 0.005, "steps": 200, "tracker": "W&B",
    "first_step": 10, "last_step": 12,
}  # fmt: skip
"""Every fact that an event may have -> a value."""


def facts_of(event):
    """Names before the colon, or the first clause, of its entry."""
    names = re.match(r"[\w, ]*", EVENTS[event])[0]
    return {name: FACTS[name] for name in names.replace(" ", "").split(",")}


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_shown(run, event):
    """Behind a launch and a job, for without them some have nothing to be told of."""
    run.event("job_started", 1, job="12", restart=0, tasks=2, hosts=["node1"])
    run.event("launched", 2, ranks=2, hosts=["node1"], resumed_from=None)
    before = status_lines(run.status(10))
    run.event(event, 3, **facts_of(event))
    report = run.status(10)
    json.dumps(report, allow_nan=False)
    last_written = re.compile(r"last written .* ago")
    said, unsaid = ([last_written.sub("", line) for line in lines] for lines in (status_lines(report), before))
    assert (said == unsaid) == (event in NOT_SHOWN), said


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_without_facts_breaks_nothing(run, event):
    run.event(event, 3)
    assert status_lines(run.status(10))


def test_lines_that_are_no_events_are_passed_over(run):
    run.event("launched", 2, ranks=2, hosts=["node1"], resumed_from=None)
    with open(run.folder / "events.jsonl", "ab") as file:
        file.write(b'{"time": "2023-11-14T22:13:25.000+00:00", "event": "of a later version"}\n3\n{"event": "sa')
    assert run.state(10) == "starting"
