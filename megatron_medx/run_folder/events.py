"""`events.jsonl`: what happened to a run, one line an event, written as it happens by whoever does it.

Steps are told of in metrics.jsonl; here stands what a person asks about the morning after: starts, saves, signals,
failures, what was done about them. A line: `time` (UTC), `event`, a key of EVENTS, and the facts that EVENTS names.
Several processes append to it, each line with one write.
"""

import datetime
import json
import os
from pathlib import Path

from megatron_medx.run_folder.names import EVENTS_FILE
from megatron_medx.terminal import complain

INTERRUPTED = 75
"""Exit code of ranks that saved on a signal and left before the last step: the run goes on when it is started again."""

AGAIN = 76
"""Exit code of ranks that ask to be started again from a checkpoint: they hung, or the run was rolled back."""

EVENTS: dict[str, str] = {
    # by a job (megatron_medx/job/)
    "job_started": "job, restart, tasks, hosts: a job entered the folder; restart counts its requeues; where it was "
    "submitted with --accept-changes, accepted: how the configuration differs from the former one",
    "job_requeued": "job, why: it waits in the queue to go on",
    "job_ended": "job, code, why",
    "lock_taken_over": "holder, why: the job that held the folder is gone",
    "preflight_passed": "hosts, took_s",
    "preflight_failed": "problems, hosts: what was found, and on which hosts",
    "ranks_changed": "before, now: an elastic run goes on with another number of ranks",
    "gave_up": "step, failures: so many failures without a step of progress between them",
    # by a launch and its ranks (training/)
    "precision_gate": "passed, gap, max_gap, steps: FP8 against bf16 before the first step; gap is null without a loss",
    "launched": "ranks, hosts, resumed_from: ranks start; the step of the checkpoint, null for a new run",
    "first_step": "step, start_s: the first step of a launch is done, so many seconds after `launched`",
    "saved": "step, save_s, bytes: a checkpoint is whole and its checksums are written",
    "save_failed": "step, why",
    "checkpoint_deleted": "step: newer ones are kept in its place",
    "checkpoint_damaged": "step, problems, moved_to: it is not resumed from",
    "signal": "signal, rank, host, step: the run saves and leaves after this step",
    "interrupted": "step, signal: all is saved, ranks leave with code INTERRUPTED; with 0 for Megatron's exit_interval",
    "hang": "step, waited_s, median_s, rank, host: stacks of all ranks are in logs/stacks_rank_<n>.txt",
    "bad_step": "step, what, loss, applied: what is `loss`, `gradient` or `spike`; more in bad_steps.jsonl",
    "rolled_back": "to_step, from_step, first_row, last_row, why: rows that are left out from now on, both included",
    "tracker_failed": "tracker, why: a tracker is told nothing more in this launch; the run goes on",
    "profiled": "first_step, last_step, ranks: traces and summaries lie in profile/",
    "out_of_memory": "step, rank, what: what held most of the memory; a snapshot, if one was recorded, is in profile/",
    "failed": "step, code, rank, why: a launch ended before its time; rank is null where one was lost without a word",
    "finished": "step",
}
"""Name of an event -> its facts, and what it means."""


def append(folder: Path, event: str, **facts: object) -> None:
    """Add a line; a disk that does not take it is complained of and stops nothing.

    Args:
        folder: of the run; made where it is missing.
        event: a key of EVENTS.
        facts: plain values; a path as text.

    Raises:
        KeyError: no such event.
    """
    EVENTS[event]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "event": event, **facts}, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / EVENTS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)
    except OSError as error:
        complain(f"{folder / EVENTS_FILE}: {error}; not written: {line.strip()}")


def read(folder: Path) -> list[dict]:
    """All events of a run, oldest first; a line that was cut off is left out, of no file there are none."""
    path = folder / EVENTS_FILE
    if not path.is_file():
        return []
    events = []
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:  # also of bytes that are no text
            continue
        if isinstance(line, dict) and "event" in line:
            events.append(line)
    return events
