"""What happened to a run: in words, as a timeline, as a table of events, and its bad steps."""

from megatron_medx.report.record import RunRecord
from megatron_medx.report.tables import NOTHING, Table, number, number_column, text_column
from megatron_medx.run_folder.events import EVENTS
from megatron_medx.status import history_lines
from megatron_medx.status.history import HOW_ENDED, ending, seconds_of
from megatron_medx.status.words import counted

KINDS = {
    "trouble": (),
    "saves": ("saved", "checkpoint_deleted"),
    "launches": ("launched", "first_step", "interrupted", "finished", "precision_gate", "profiled"),
    "jobs": ("job_started", "job_requeued", "job_ended", "lock_taken_over", "preflight_passed", "ranks_changed"),
}
"""Rows of the timeline, from below, and the events of each; trouble is whatever stands in no other."""

KIND_COLORS = {"trouble": "#d0504d", "saves": "#239b74", "launches": "#2f7ed8", "jobs": "#8a6fd1"}

ROUTINE = ("saved", "checkpoint_deleted")
"""Events that there are many of: the table has only the last ones."""

MAX_EVENTS, MAX_ROUTINE, MAX_DOTS, MAX_BAD_STEPS = 200, 5, 1_000, 30
"""Rows of the table, of these routine ones, dots of the timeline, rows of bad steps: the newest."""


def story(run: RunRecord) -> list[tuple[str, str]]:
    """Rows of words as `medx status` has them: starts, jobs, and what went wrong."""
    status = run.status
    return [*history_lines.starts(status), *history_lines.jobs(status), *history_lines.happened(status)]


def timeline(run: RunRecord) -> tuple[list[str], dict[str, list], dict[str, list]] | None:
    """Rows, dots and bars of the timeline (curves.py); None without events."""
    events = [event for event in run.events if isinstance(event.get("time"), str)]
    if not events:
        return None
    trouble = [event for event in events if kind_of(event) == "trouble"][-MAX_DOTS:]
    calm = [event for event in events if kind_of(event) != "trouble"][-MAX_DOTS:]
    shown = sorted(trouble + calm, key=lambda event: event["time"])
    dots = {
        "time_ms": [1e3 * seconds_of(event["time"]) for event in shown],
        "kind": [kind_of(event) for event in shown],
        "color": [KIND_COLORS[kind_of(event)] for event in shown],
        "text": [f"{event['event']}, {history_lines.clock(event['time'])}: {event_text(event)}" for event in shown],
    }
    return list(KINDS), dots, _launch_bars(run, shown[-1]["time"])


def _launch_bars(run: RunRecord, last_time: str) -> dict[str, list]:
    """From the start of each launch to its end, of one that was killed to the next, of the last to now if it runs."""
    launches = [entry for entry in run.status["launches"] if entry["started"]]
    is_running = run.status["state"]["name"] == "running"
    ends = [*(entry["started"] for entry in launches[1:]), run.status["read_at"] if is_running else last_time]
    texts = [
        f"launch {number_of}, {history_lines.clock(entry['started'])}" for number_of, entry in enumerate(launches, 1)
    ]
    return {
        "start_ms": [1e3 * seconds_of(entry["started"]) for entry in launches],
        "end_ms": [1e3 * seconds_of(entry["ended"] or end) for entry, end in zip(launches, ends, strict=False)],
        "kind": ["launches"] * len(launches),
        "text": texts,
    }


def restarts(run: RunRecord) -> list[int]:
    """Steps that launches went on from, for the curves."""
    return [entry["resumed_from"] for entry in run.status["launches"] if isinstance(entry["resumed_from"], int)]


def event_table(run: RunRecord) -> Table:
    """The events, newest first; of routine ones the last."""
    table = Table([text_column("time"), text_column("event"), text_column("what")])
    num_routine = num_left = 0
    for event in reversed(run.events):
        num_routine += event["event"] in ROUTINE
        if len(table.rows) >= MAX_EVENTS or (event["event"] in ROUTINE and num_routine > MAX_ROUTINE):
            num_left += 1
            continue
        table.rows.append([history_lines.clock(event.get("time")), str(event["event"]), event_text(event)])
    if num_left:
        table.note = f"{counted(num_left, 'event')} more in events.jsonl, most of them saves."
    return table


def event_text(event: dict) -> str:
    """What an event tells, in words where status has them, else its facts by name."""
    if event["event"] in HOW_ENDED:
        return ending(event)
    facts = {key: value for key, value in event.items() if key not in ("time", "event")}
    return ", ".join(f"{key} {_fact(value)}" for key, value in facts.items()) or _meaning(event)


def kind_of(event: dict) -> str:
    """The row of the timeline that an event stands in."""
    return next((kind for kind, names in KINDS.items() if event["event"] in names), "trouble")


def bad_step_table(run: RunRecord) -> Table | None:
    """The last bad steps; None where there was none."""
    if not run.bad_steps:
        return None
    columns = [number_column("step.step"), text_column("what"), number_column("step.loss"), text_column("update")]
    table = Table([*columns, text_column("samples")])
    for line in reversed(run.bad_steps[-MAX_BAD_STEPS:]):
        ids = line.get("sample_ids")
        samples = [str(sample) for sample in ids] if isinstance(ids, list) else []
        more = f" and {len(samples) - 3:,} more" if len(samples) > 3 else ""
        applied = {True: "applied", False: "skipped"}.get(line.get("applied"), NOTHING)
        cells = [number(line.get("step")), str(line.get("what", NOTHING)), number(line.get("loss")), applied]
        table.rows.append([*cells, ", ".join(samples[:3]) + more])
    if len(run.bad_steps) > MAX_BAD_STEPS:
        table.note = f"The last {MAX_BAD_STEPS}; bad_steps.jsonl has all."
    return table


def _meaning(event: dict) -> str:
    return EVENTS.get(event["event"], "")


def _fact(value: object) -> str:
    if isinstance(value, list):
        return history_lines.hosts_text(value)
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
