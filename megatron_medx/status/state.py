"""The state of a run: what its last events say, as long as its files show signs of life.

A run without events.jsonl, of an older version, is judged by its files alone. Nothing asks the scheduler or looks for
processes: a run counts as running while it writes, and a killed one until its patience is over.
"""

import datetime
from collections.abc import Iterable
from pathlib import Path

from megatron_medx.config.checkpoint_folders import CHECKPOINTS, RUN_FILE, TRACKER_FILE
from megatron_medx.config.run import RunConfig, SurvivalSection
from megatron_medx.config.validation import VALIDATION_FILE
from megatron_medx.run_folder.events import INTERRUPTED
from megatron_medx.run_folder.integrity import tracked_step
from megatron_medx.run_folder.names import (
    ERROR_FILE,
    EVENTS_FILE,
    GATE,
    GATE_PICTURE,
    LOGS,
    METRICS_FILE,
    rank_log,
)
from megatron_medx.status import run_files
from megatron_medx.status.history import HOW_ENDED, ending, seconds_of

STATES = {
    "not started": "the folder is prepared",
    "queued": "a job waits in the queue to go on",
    "preflight": "a job checks its nodes",
    "starting": "ranks start, or start again; no step is done yet",
    "running": "steps are done and written",
    "interrupted": "it saved on a signal and waits to be started again",
    "stopped": "it ended before its last step and does not start again by itself",
    "finished": "the last step is done and saved",
    "stale": "it should write and has not for too long: its processes are gone, or hang",
}
"""Every state, and what it means."""

PATIENCE_STEPS, PATIENCE_S = 20, 120.0
"""A run is running until nothing was written for so many median steps, and at least so many seconds: a save or a
validation may lie between two steps. Where hung steps are looked for (survival.hang_factor), until one of them would
have been told of, and REACTION_S more."""

REACTION_S = 60.0

START_PATIENCE_S = 900.0
"""The same before the first step of a start: libraries, the plan of the data and a checkpoint are read first."""

_ALIVE = ("preflight", "starting", "running")
_DECISIVE = (
    *("job_started", "job_requeued", "preflight_passed", "preflight_failed", "precision_gate", "gave_up", "launched"),
    "first_step",
    *HOW_ENDED,
)


def run_state(
    folder: Path, config: RunConfig | None, events: list[dict], step: int, step_time_s: float | None, now_s: float
) -> dict:
    """`name`, a key of STATES; `why` in words; `since`: when it began, or the last sign of life of a run that lives.

    And `error`: what a launch stopped with, or the traceback that a log ends with.

    Args:
        folder: of the run.
        config: None where the run has none yet.
        events: of the run; none of an old one.
        step: the last that metrics.jsonl tells of.
        step_time_s: the median of the last steps, if any was done.
        now_s: seconds since 1970.
    """
    steps = config.training.steps if config else None
    is_saved = steps is not None and step >= steps and (tracked_step(folder / CHECKPOINTS) or 0) >= steps
    phase = _by_events(folder, events, steps, is_saved) or _by_files(folder, steps, step, is_saved)
    name, why, since_s, error = phase
    if name == "running" and steps is not None and step >= steps:
        why = "the last step is done, its checkpoint is not"
    sign_s = max(filter(None, map(run_files.written_s, _signs_of_life(folder))), default=now_s)
    if name in _ALIVE:
        since_s = sign_s
        patience_s = _patience_s(config.survival if config else None, step_time_s if name == "running" else None)
        if now_s - sign_s > patience_s:
            fallen = run_files.last_words(folder / LOGS)
            error = None if fallen is None else f"{fallen[0]}: {fallen[1]}"
            name, why = "stale", f"nothing was written for longer than {patience_s:.0f} s; before, {name}: {why}"
    since = datetime.datetime.fromtimestamp(sign_s if since_s is None else since_s, datetime.UTC)
    return {"name": name, "why": why, "since": since.isoformat(timespec="seconds"), "error": error}


def _by_events(folder: Path, events: list[dict], steps: int | None, is_saved: bool) -> tuple | None:
    """Name, why, since and error, as the last event that decides says; None where none does."""
    decisive = [event for event in events if event["event"] in _DECISIVE]
    if not decisive:
        return None
    job = next((event for event in reversed(events) if event["event"] == "job_started"), None)
    after = events[events.index(job) + 1 :] if job else []
    ends = [event for event in after if event["event"] in ("job_requeued", "job_ended", "launched")]
    ended = ends[-1] if ends and ends[-1]["event"] != "launched" else None  # else a person goes on without a job
    is_requeued = ended is not None and ended["event"] == "job_requeued"
    last = ended if is_requeued else decisive[-1]  # ranks that a requeue ends may say so behind it
    name, its_job = last["event"], f"job {job.get('job')}" if job else "the job"
    has_job = job is not None and all(event["event"] == "launched" for event in ends)
    since_s = seconds_of(last["time"])
    state = _named_by(last, its_job, has_job, goes_on=ended is None)
    if ended is not None and not is_requeued and (state[0] in _ALIVE or name == "job_requeued"):
        since_s = seconds_of(ended["time"])
        state = _after_job(ended, its_job, is_saved)
    error = None
    if name == "finished" and steps is not None and steps > (last.get("step") or 0):
        state = ("starting", f"it is to go on from step {last.get('step')} to {steps}")
    elif state[0] == "running":
        error = run_files.error_text(folder)  # a rank wrote it a moment ago, and the launch has not ended yet
        state = ("stopped", "with an error") if error else state
    elif name in ("failed", "gave_up") and state[0] == "stopped":
        error = _error(folder)
    return *state, since_s, error


def _named_by(event: dict, its_job: str, has_job: bool, goes_on: bool) -> tuple[str, str]:
    """State and reason by one event.

    Args:
        event: the last that decides.
        its_job: in words.
        has_job: a job is at work in the folder.
        goes_on: no job has ended; what hung is started again, by the job or by `medx train`.
    """
    match event["event"]:
        case "job_started":
            return "preflight", f"{its_job} has begun; its nodes are checked before ranks start"
        case "preflight_passed":
            return "starting", "the nodes passed their checks, ranks are started"
        case "preflight_failed":
            return "stopped", "the preflight found nodes that cannot be used"
        case "precision_gate" if event.get("passed"):
            return "starting", "the precision gate is passed, ranks are started"
        case "precision_gate":
            return "stopped", f"the precision gate refused it; see {GATE_PICTURE}"
        case "job_requeued":
            return "queued", f"job {event.get('job')} waits in the queue to go on: {event.get('why')}"
        case "gave_up":
            return "stopped", f"gave up after {event.get('failures')} failures at step {event.get('step')}"
        case "launched":
            return "starting", "it starts, no step of this start is done yet"
        case "first_step":
            return "running", "it writes"
        case "finished":
            return "finished", "the last step is done and saved"
        case "interrupted":
            return "interrupted", f"{ending(event)}; waits to be started again"
        case "hang" | "rolled_back" if goes_on:
            return "starting", f"{ending(event)}; it is started again"
        case "failed" if has_job and event.get("code") != 2:  # which is never tried again
            return "starting", f"{ending(event)}; {its_job} decides what follows"
    return "stopped", ending(event)


def _after_job(ended: dict, its_job: str, is_saved: bool) -> tuple[str, str]:
    """State of a run whose job ended before its ranks said that they do."""
    if ended.get("code") == 0 and is_saved:
        return "finished", "the last step is done and saved"
    name = "interrupted" if ended.get("code") == INTERRUPTED else "stopped"
    return name, f"{its_job} ended with code {ended.get('code')}: {ended.get('why')}"


def _by_files(folder: Path, steps: int | None, step: int, is_saved: bool) -> tuple:
    """The same of a run without events that decide."""
    logs = folder / LOGS
    if steps is None:
        return "starting", "a job has just taken the folder", None, None
    if (error := run_files.error_text(folder)) is not None:
        return "stopped", "with an error", run_files.written_s(logs / ERROR_FILE), error
    stepped_s, prepared_s = (run_files.written_s(folder / name) for name in (METRICS_FILE, RUN_FILE))
    if is_saved:
        return "finished", "the last step is done and saved", stepped_s, None
    if stepped_s is None and not (logs / rank_log(0)).is_file():
        return "not started", "the folder is prepared, no rank has started", prepared_s, None
    if stepped_s is None or prepared_s > stepped_s:  # each launch writes run.yaml before its ranks start
        return "starting", "it starts, no step of this start is done yet", None, None
    return "running", "it writes", None, None


def _error(folder: Path) -> str | None:
    """What a launch stopped with, in three parts, or what the rank said that fell first."""
    fallen = run_files.last_words(folder / LOGS)
    return run_files.error_text(folder) or (None if fallen is None else f"{fallen[0]}: {fallen[1]}")


def _patience_s(survival: SurvivalSection | None, step_time_s: float | None) -> float:
    if step_time_s is None or survival is None:
        return START_PATIENCE_S
    patience_s = max(PATIENCE_S, PATIENCE_STEPS * step_time_s)
    if survival.hang_factor:
        hang_s = max(survival.hang_min_s, survival.hang_factor * step_time_s)
        patience_s = max(patience_s, hang_s + REACTION_S)
    return patience_s


def _signs_of_life(folder: Path) -> Iterable[Path]:
    """What is written while no step ends: validation, saves (Megatron tells of them in the log of rank 0), trials."""
    return (
        *(folder / RUN_FILE, folder / EVENTS_FILE, folder / METRICS_FILE, folder / VALIDATION_FILE),
        *(folder / CHECKPOINTS / TRACKER_FILE, folder / LOGS / rank_log(0)),
        *(path for name in (METRICS_FILE, f"{LOGS}/{rank_log(0)}") for path in folder.glob(f"{GATE}/*/{name}")),
    )
