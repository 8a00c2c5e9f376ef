"""The text of what happened to a run: what needs a person, starts and how they ended, jobs, hangs, rollbacks."""

import collections
import datetime

from megatron_medx.run_folder.names import LOGS, PROFILE, PROFILE_SUMMARY, stacks_file
from megatron_medx.status.words import counted, duration

NUM_SHOWN = 3
"""Last starts, and problems of a kind, that get lines of their own; `--json` has all."""

_ENDED = {
    "interrupted": "saved on a signal",
    "hang": "hung",
    "rolled_back": "rolled back",
    "failed": "failed",
    "finished": "finished",
    None: "ended without a word",
}
"""How a launch ended -> the same as a reason for the next one."""


def attention(report: dict) -> list[tuple[str, str]]:
    """What a person should do something about: what it is, and the next thing to do."""
    state, incidents = report["state"], report["incidents"]
    rows = []
    if state["name"] == "stale":
        rows.append("no sign of life: `squeue --me` says whether its job runs; if not, start it again as before")
    if state["name"] == "interrupted":
        rows.append("start it again as before, unless its job is requeued: `squeue --me`")
    if incidents["gave_up"] and state["name"] == "stopped":
        rows.append("read why its last starts failed (restarts), mend that, and start it again as before")
    failed = report["preflight"]
    if failed and not failed["passed"] and state["name"] in ("stopped", "queued"):
        problems = "; ".join(_texts(failed.get("problems"))) or "no problem named"
        rows.append(f"preflight: {problems}; leave {hosts_text(failed.get('hosts'))} out (sbatch --exclude) and report")
    unsaved = incidents["save_failures"][-1:]
    if unsaved and unsaved[0]["time"] > max((save["time"] for save in report["saves"]["last"]), default=""):
        rows.append(f"step {_number(unsaved[0].get('step'))} was not saved: {unsaved[0].get('why')}")
    for entry in incidents["damaged"][-NUM_SHOWN:]:
        problems = "; ".join(_texts(entry.get("problems")))
        rows.append(
            f"checkpoint of step {_number(entry.get('step'))} was damaged ({problems}), now {entry.get('moved_to')}"
        )
    return [("needs you" if number == 0 else "", text) for number, text in enumerate(rows)]


def starts(report: dict) -> list[tuple[str, str]]:
    """How often it was started again and why, and the last starts."""
    launches = report["launches"]
    if not launches:
        return []
    if len(launches) == 1:
        return [("starts", _launch(launches[0], is_last=True))]
    reasons = collections.Counter(_ENDED[entry["how"]] for entry in launches[:-1])
    repeated = sum(entry["steps_repeated"] or 0 for entry in launches)
    at_least = "at least " if any(entry["how"] is None for entry in launches[:-1]) else ""
    text = f"{counted(len(launches) - 1, 'restart')}: {', '.join(f'{num} {why}' for why, num in reasons.items())}"
    text += f"; {at_least}{counted(repeated, 'step')} repeated; first started {clock(launches[0]['started'])}"
    return [("starts", text)] + [("", _launch(entry, entry is launches[-1])) for entry in launches[-NUM_SHOWN:]]


def _launch(entry: dict, is_last: bool) -> str:
    where = "" if entry["job"] is None else f"job {entry['job']}, "
    ranks = "" if entry["num_ranks"] is None else counted(entry["num_ranks"], "rank")
    parts = [f"{clock(entry['started'])}: {where}{ranks}{hosts_text(entry['hosts'], ' on ')}"]
    parts.append("new" if entry["resumed_from"] is None else f"from step {_number(entry['resumed_from'])}")
    if entry["start_s"] is not None:
        parts.append(f"first step after {duration(entry['start_s'])}")
    if entry["last_step"] is not None:
        parts.append(f"to step {_number(entry['last_step'])}")
    if entry["steps_repeated"]:
        parts.append(f"{counted(entry['steps_repeated'], 'step')} repeated")
    if entry["how"] is not None:
        says_how = entry["how"] in ("hang", "rolled_back")
        parts.append(entry["why"] if says_how else f"{entry['how']}: {entry['why']}")
    elif not is_last:
        parts.append(_ENDED[None])
    return ", ".join(parts)


def jobs(report: dict) -> list[tuple[str, str]]:
    """The last job, requeues, and what the last preflight found."""
    rows, entries, found = [], report["jobs"], report["preflight"]
    if entries:
        last = entries[-1]
        start = (
            f", start {last['restart'] + 1} of it" if isinstance(last.get("restart"), int) and last["restart"] else ""
        )
        text = f"{last['job']}{start}, {counted(last.get('tasks') or 0, 'task')}{hosts_text(last.get('hosts'), ' on ')}"
        text += f", since {clock(last['started'])}"
        if last["requeued"]:
            text += f"; requeued: {last['requeued'].get('why')}"
        if last["ended"]:
            text += f"; ended with code {last['ended'].get('code')}: {last['ended'].get('why')}"
        num_requeued = sum(entry["requeued"] is not None for entry in entries)
        if accepted := _texts(last.get("accepted")):
            more = f" and {len(accepted) - NUM_SHOWN} more" if len(accepted) > NUM_SHOWN else ""
            text += f"; accepted: {', '.join(accepted[:NUM_SHOWN])}{more}"
        text += f"; {counted(len(entries), 'start')} of jobs, {counted(num_requeued, 'requeue')}" * (len(entries) > 1)
        rows.append(("job", text))
    if found:
        took = "" if found.get("took_s") is None else f" in {duration(found['took_s'])}"
        said = "passed" if found["passed"] else f"FAILED: {'; '.join(_texts(found.get('problems')))};"
        rows.append(("preflight", f"{said}{took}{hosts_text(found.get('hosts'), ' on ')}, {clock(found.get('time'))}"))
    return rows


def happened(report: dict) -> list[tuple[str, str]]:
    """Signals, hangs, rollbacks, other numbers of ranks, locks taken over; each kind with its last ones."""
    found, rows = report["incidents"], []
    for entry in found["gates"][-1:]:
        gap = "no gap known" if entry.get("gap") is None else f"gap {entry['gap']:.3%}"
        bound = "?" if entry.get("max_gap") is None else f"{entry['max_gap']:.3%}"
        said = "passed" if entry.get("passed") else "NOT passed"
        text = f"{said}: {gap} after {_number(entry.get('steps'))} steps, at most {bound}"
        rows.append(("gate", f"{text}, {clock(entry.get('time'))}"))
    for entry in found["signals"][-1:]:
        at = f"the last {entry.get('signal')} at step {_number(entry.get('step'))}"
        where = f"seen by rank {entry.get('rank')} on {entry.get('host')}"
        rows.append(("signals", f"{len(found['signals']):,}, {at}, {where}, {clock(entry.get('time'))}"))
    if found["hangs"]:
        rows.append(("hangs", _hangs(found["hangs"])))
    if found["rollbacks"]:
        left_out = sum(_num_rows(entry) for entry in found["rollbacks"])
        rows.append(("rollbacks", f"{len(found['rollbacks']):,}, {counted(left_out, 'row')} left out"))
        rows += [("", _rollback(entry)) for entry in found["rollbacks"][-NUM_SHOWN:]]
    for entry in found["trackers"][-NUM_SHOWN:]:
        text = f"{entry.get('tracker')} failed and is told nothing more in its launch: {entry.get('why')}"
        rows.append(("tracker", f"{text}, {clock(entry.get('time'))}"))
    for entry in found["ranks_changed"][-NUM_SHOWN:]:
        rows.append(("ranks", f"{entry.get('before')} became {entry.get('now')}, {clock(entry.get('time'))}"))
    for entry in found["locks_taken_over"][-1:]:
        text = f"taken over {counted(len(found['locks_taken_over']), 'time')}, the last from {entry.get('holder')}"
        rows.append(("lock", f"{text}: {entry.get('why')}, {clock(entry.get('time'))}"))
    if found["save_failures"]:
        last = found["save_failures"][-1]
        text = f"{len(found['save_failures']):,}, the last of step {_number(last.get('step'))}: {last.get('why')}"
        rows.append(("failed saves", f"{text}, {clock(last.get('time'))}"))
    for entry in found["out_of_memory"][-NUM_SHOWN:]:
        at = f"rank {entry.get('rank')} at step {_number(entry.get('step'))}"
        rows.append(("memory ran out", f"{at}, {clock(entry.get('time'))}: {entry.get('what')}"))
    for entry in found["profiles"][-1:]:
        steps = f"steps {_number(entry.get('first_step'))} to {_number(entry.get('last_step'))}"
        rows.append(("profile", f"{steps} of {counted(entry.get('ranks') or 0, 'rank')}: {PROFILE}/{PROFILE_SUMMARY}"))
    return rows


def hosts_text(hosts: object, before: str = "") -> str:
    """Up to four names, of more the first two and how many; nothing where none are told."""
    if not hosts:
        return ""
    if not isinstance(hosts, list):
        return f"{before}{hosts}"
    names = [str(host) for host in hosts]
    shown = ", ".join(names if len(names) <= 4 else names[:2])
    return before + shown + (f" and {len(names) - 2} more hosts" if len(names) > 4 else "")


def clock(time: str | None) -> str:
    """An event's time to the second."""
    return "at an unknown time" if time is None else f"{datetime.datetime.fromisoformat(time):%Y-%m-%d %H:%M:%S} UTC"


def _hangs(entries: list[dict]) -> str:
    """Which hosts they were seen on: one that comes again and again is to blame."""
    last, places = entries[-1], collections.Counter(str(entry.get("host")) for entry in entries)
    on = ", ".join(f"{num} on {host}" for host, num in places.most_common(NUM_SHOWN))
    text = f"{len(entries):,} ({on}); the last at step {_number(last.get('step'))}"
    text += f": waited {_seconds(last.get('waited_s'))}, a step takes {_seconds(last.get('median_s'))}"
    return text + (f"; {LOGS}/{stacks_file(last['rank'])} and its like" if isinstance(last.get("rank"), int) else "")


def _rollback(entry: dict) -> str:
    rows = f"rows {_number(entry.get('first_row'))} to {_number(entry.get('last_row'))} are left out"
    steps = f"from step {_number(entry.get('from_step'))} to {_number(entry.get('to_step'))}"
    return f"{clock(entry.get('time'))}: {steps}, {rows}: {entry.get('why')}"


def _num_rows(entry: dict) -> int:
    first, last = entry.get("first_row"), entry.get("last_row")
    return last - first + 1 if isinstance(first, int) and isinstance(last, int) else 0


def _texts(value: object) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list) else [] if value is None else [str(value)]


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


def _seconds(value: object) -> str:
    return f"{value:.3g} s" if isinstance(value, int | float) else "? s"
