"""What `events.jsonl` tells of a run, put together: its jobs, its launches, its saves, and what went wrong.

Comes in: the events, oldest first. Goes out: plain values. A fact that an event lacks is None; times are as written,
UTC. Which events are shown nowhere, the tests say (tests/unit/status/test_events_shown.py).
"""

import datetime
import itertools
import statistics

INCIDENTS = {
    "signals": "signal",
    "hangs": "hang",
    "rollbacks": "rolled_back",
    "save_failures": "save_failed",
    "damaged": "checkpoint_damaged",
    "ranks_changed": "ranks_changed",
    "locks_taken_over": "lock_taken_over",
    "gave_up": "gave_up",
    "gates": "precision_gate",
    "trackers": "tracker_failed",
    "out_of_memory": "out_of_memory",
    "profiles": "profiled",
}
"""Key of the report -> the event that it lists, each entry with its time and facts."""

HOW_ENDED = ("interrupted", "hang", "rolled_back", "failed", "finished")
"""Events that a launch ends with; where two tell of one end, the first is the cause."""

_STEPS_OF_A_LAUNCH = ("first_step", "saved", "bad_step", "signal", *HOW_ENDED)
"""Events whose `step` was done by the launch that they follow, or of a hang begun."""

NUM_SAVES = 5
"""Last saves that are told of, and intervals between them that a rate is taken from."""


def told(events: list[dict], name: str) -> list[dict]:
    """Time and facts of the events of one kind."""
    return [
        {key: value for key, value in event.items() if key != "event"} for event in events if event["event"] == name
    ]


def incidents(events: list[dict]) -> dict:
    """INCIDENTS, filled; and `deleted`, the number and last step of checkpoints that gave way, which are many."""
    deleted = told(events, "checkpoint_deleted")
    return {key: told(events, name) for key, name in INCIDENTS.items()} | {
        "deleted": {"num": len(deleted), "last_step": deleted[-1].get("step") if deleted else None}
    }


def launches(events: list[dict], logged_step: int | None) -> list[dict]:
    """One entry a launch, oldest first.

    Keys: `started`; `job` and `num_ranks`, `hosts`; `resumed_from`, the step, None where no checkpoint was; its
    `first_step`, after `start_s` seconds; `last_step` that an event names, a lower bound where it was killed;
    `steps_repeated`, those that the launch before had already made; `how` it ended, one of HOW_ENDED or None, when
    (`ended`) and `why`.

    Args:
        events: of the run.
        logged_step: the last of metrics.jsonl, which is one of the last launch once it has done a step.
    """
    entries, job = [], None
    for event in events:
        if event["event"] == "job_started":
            job = event.get("job")
        elif event["event"] == "job_ended":
            job = None
        elif event["event"] == "launched":
            entries.append(_new_launch(event, job))
        elif entries:
            _go_on(entries[-1], event)
    if entries and logged_step is not None and entries[-1]["first_step"] is not None:
        entries[-1]["last_step"] = max(logged_step, entries[-1]["last_step"] or 0)
    for former, entry in itertools.pairwise(entries):
        if former["last_step"] is not None:
            entry["steps_repeated"] = max(0, former["last_step"] - (entry["resumed_from"] or 0))
    return entries


def _new_launch(event: dict, job: object) -> dict:
    return {
        "started": event.get("time"),
        "job": job,
        "num_ranks": event.get("ranks"),
        "hosts": event.get("hosts"),
        "resumed_from": event.get("resumed_from"),
        **dict.fromkeys(("first_step", "start_s", "last_step", "steps_repeated", "how", "ended", "why")),
    }


def _go_on(launch: dict, event: dict) -> None:
    """What an event adds to the launch that it follows."""
    name = event["event"]
    if name == "first_step":
        launch |= {"first_step": event.get("step"), "start_s": event.get("start_s")}
    done = event.get("from_step" if name == "rolled_back" else "step")
    if name in _STEPS_OF_A_LAUNCH and isinstance(done, int):
        launch["last_step"] = max(done - (name == "hang"), launch["last_step"] or 0)
    if name in HOW_ENDED and launch["how"] is None:
        launch |= {"how": name, "ended": event.get("time"), "why": ending(event)}


def ending(event: dict) -> str:
    """Why a launch ended, in words, by the event that says so."""
    step = event.get("step")
    match event["event"]:
        case "interrupted":
            return f"saved at step {step} on {event.get('signal')}"
        case "hang":
            waited_s, where = event.get("waited_s"), f"rank {event.get('rank')} on {event.get('host')}"
            return f"step {step} hung" + (f" for {waited_s:.0f} s" if waited_s is not None else "") + f", {where}"
        case "rolled_back":
            return f"rolled back from step {event.get('from_step')} to {event.get('to_step')}: {event.get('why')}"
        case "failed":
            who = "" if event.get("rank") is None else f"rank {event['rank']}, "
            return f"{who}code {event.get('code')}: {event.get('why')}"
    return f"step {step} is done"


def jobs(events: list[dict]) -> list[dict]:
    """One entry a start of a job, oldest first: what it began with, what its preflight found, how it ended."""
    entries: list[dict] = []
    for event in events:
        facts = {key: value for key, value in event.items() if key not in ("event", "job")}
        match event["event"]:
            case "job_started":
                facts["started"] = facts.pop("time", None)
                entries.append({"job": event.get("job"), **facts, "preflight": None, "requeued": None, "ended": None})
            case "job_requeued" | "job_ended" as name if entries:
                entries[-1][name.removeprefix("job_")] = facts
            case "preflight_passed" | "preflight_failed" as name if entries:
                entries[-1]["preflight"] = {"passed": name == "preflight_passed", **facts}
    return entries


def preflight(events: list[dict]) -> dict | None:
    """What the last one found, whether a job ran it or a person."""
    for event in reversed(events):
        if event["event"] in ("preflight_passed", "preflight_failed"):
            facts = {key: value for key, value in event.items() if key != "event"}
            return {"passed": event["event"] == "preflight_passed", **facts}
    return None


def saves(events: list[dict]) -> dict:
    """`num` of all, and of the last ones step, time, seconds and bytes; the median of their seconds."""
    found = told(events, "saved")
    seconds = [save["save_s"] for save in found if isinstance(save.get("save_s"), int | float)]
    return {
        "num": len(found),
        "median_s": statistics.median(seconds[-NUM_SAVES:]) if seconds else None,
        "last": found[-NUM_SAVES:],
    }


def step_s_with_saves(events: list[dict]) -> float | None:
    """Seconds a step takes with all that lies between steps, as the last launch's saves are apart; None before two.

    Worked example: step 40 was saved at 12:00:00 and step 60 at 12:00:30: 1.5 s, whatever a step alone takes.
    """
    marks: list[tuple[int, float]] = []
    for event in events:
        if event["event"] == "launched":
            marks = []
        elif event["event"] in ("first_step", "saved") and isinstance(event.get("step"), int) and "time" in event:
            marks.append((event["step"], seconds_of(event["time"])))
    rates = [(later - before) / (b - a) for (a, before), (b, later) in itertools.pairwise(marks) if b > a]
    return statistics.median(rates[-NUM_SAVES:]) if rates else None


def seconds_of(time: str) -> float:
    """Seconds since 1970 of an event's time."""
    return datetime.datetime.fromisoformat(time).timestamp()
