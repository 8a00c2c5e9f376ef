"""How a run is doing, from the files of its folder alone: on any host that sees them, without torch, in a moment.

Comes in: a run folder. Goes out: a dict of plain values, for `lines.py` and `--json`. What happened is taken from
events.jsonl (`history.py`, `state.py`), steps from metrics.jsonl; an old run without events tells what is left.
"""

import datetime
import math
import statistics
from pathlib import Path

from megatron_medx.config.checkpoint_folders import CHECKPOINTS, RUN_FILE
from megatron_medx.config.exports import EXPORTS
from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.config.validation import MAIN_SET, VALIDATION_FILE
from megatron_medx.errors import ConfigError
from megatron_medx.run_folder import events as run_events
from megatron_medx.run_folder.integrity import tracked_step
from megatron_medx.run_folder.names import BAD_STEPS_FILE, DATA, EVENTS_FILE, METRICS_FILE, REJECTS_FILE
from megatron_medx.status import history, run_files
from megatron_medx.status.state import run_state

WINDOW_STEPS = 50
"""Last steps that medians and means are taken over."""

NUM_CHECKPOINTS = 3
"""Checkpoints that are looked into, the newest."""


def run_status(folder: Path, now_s: float) -> dict:
    """Everything that the files of a run tell; a part that there is nothing of is None.

    Args:
        folder: of the run.
        now_s: seconds since 1970.

    Raises:
        ConfigError: it is no run folder, or a file in it cannot be read.
    """
    _check_folder(folder)
    try:
        config = read_run_yaml(folder / RUN_FILE) if (folder / RUN_FILE).is_file() else None
        return _status(folder, config, run_events.read(folder), now_s)
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}",
            "files of the run that can be read",
            "ask their owner for access, or look again from a host that sees the disk",
        ) from error


def _check_folder(folder: Path) -> None:
    is_run = (folder / RUN_FILE).is_file() or (folder / EVENTS_FILE).is_file()
    if is_run and folder.absolute().name != CHECKPOINTS:
        return
    if not folder.exists():
        found = f"no folder {folder}"
        do = "correct the path; where its job still waits in the queue (squeue --me), ask again when that runs"
    elif not folder.is_dir():
        found, do = f"{folder} is a file", f"medx status {folder.parent}"
    elif is_run:
        found, do = f"{folder} holds the checkpoints of a run", f"medx status {folder.absolute().parent}"
    else:
        found = f"{folder} is no run folder: it holds neither {RUN_FILE} nor {EVENTS_FILE}"
        do = "correct the path; the first of them is there as soon as a run is prepared or its job begins"
    raise ConfigError(found, "the folder that `medx train` or the log of the job names", do)


def _status(folder: Path, config: RunConfig | None, events: list[dict], now_s: float) -> dict:
    metrics = [line for line in run_files.tail_lines(folder / METRICS_FILE) if isinstance(line.get("step"), int)]
    speed, step = _speed(metrics[-WINDOW_STEPS:]), metrics[-1]["step"] if metrics else 0
    state = run_state(folder, config, events, step, speed and speed["step_time_s"], now_s)
    launches, jobs = history.launches(events, step or None), history.jobs(events)
    return {
        "folder": str(folder),
        "recipe": config.run.recipe if config else None,
        "num_ranks": config.parallel.world_size if config else (jobs[-1].get("tasks") if jobs else None),
        "read_at": _utc(now_s),
        "state": state,
        "step": step,
        "steps": config.training.steps if config else None,
        "left": _left(config, step, speed, events) if config and state["name"] == "running" else None,
        "loss": _loss(metrics),
        "validation": _validation(run_files.tail_lines(folder / VALIDATION_FILE)),
        "exports": run_files.exports_found(folder / EXPORTS) if (folder / EXPORTS).is_dir() else None,
        "speed": speed,
        "checkpoints": _checkpoints(folder / CHECKPOINTS, config, step, events, now_s),
        "saves": history.saves(events),
        "launches": launches,
        "jobs": jobs,
        "preflight": history.preflight(events),
        "incidents": history.incidents(events),
        "bad_steps": _bad_steps(folder / BAD_STEPS_FILE, history.told(events, "bad_step")),
        "rejects": {
            "damaged": run_files.count_lines(folder / REJECTS_FILE),
            "too_long": run_files.count_lines(folder / DATA / REJECTS_FILE),
        },
    }


def _left(config: RunConfig, step: int, speed: dict | None, events: list[dict]) -> dict | None:
    """Seconds to the last step, and whether saves and validation are in them: they are once two saves were told of."""
    whole_s = history.step_s_with_saves(events)
    step_s = whole_s or (speed and speed["step_time_s"])
    if step_s is None:
        return None
    return {"time_s": max(0, config.training.steps - step) * step_s, "with_saves": whole_s is not None}


def _checkpoints(checkpoints: Path, config: RunConfig | None, step: int, events: list[dict], now_s: float) -> dict:
    """How many lie there, where a resume starts, and the last ones with what events tell of their saves."""
    tracked = tracked_step(checkpoints) or 0
    num, entries = run_files.checkpoint_entries(checkpoints, NUM_CHECKPOINTS)
    save_s = {save.get("step"): save.get("save_s") for save in history.told(events, "saved")}
    return {
        "num": num,
        "resume_step": tracked or None,
        "steps_since": max(0, step - tracked),
        "every_steps": config.checkpoint.every_steps if config else None,
        "last": [_aged(entry, now_s) | {"save_s": save_s.get(entry["step"])} for entry in entries],
    }


def _speed(metrics: list[dict]) -> dict | None:
    """Medians over steps: seconds, tokens/s of the whole run, share of time that the reporting rank waited for data."""
    timed = [line for line in metrics if (_finite(line.get("step_time_s")) or 0) > 0]
    if not timed:
        return None
    rates = [line["tokens"] / line["step_time_s"] for line in timed if _finite(line.get("tokens")) is not None]
    waited_s = sum(_finite(line.get("data_wait_s")) or 0.0 for line in timed)
    flops = [rate for line in timed if (rate := _finite(line.get("model_tflops_per_s"))) is not None]
    return {
        "num_steps": len(timed),
        "step_time_s": statistics.median(line["step_time_s"] for line in timed),
        "tokens_per_s": statistics.median(rates) if rates else None,
        "data_wait_share": waited_s / sum(line["step_time_s"] for line in timed),
        "model_tflops_per_s_per_rank": statistics.median(flops) if flops else None,
    }


def _loss(metrics: list[dict]) -> dict | None:
    """The last finite loss and its step; mean of the last steps' and of as many before, at most WINDOW_STEPS each."""
    finite = [(line["step"], loss) for line in metrics if (loss := _finite(line.get("loss"))) is not None]
    if not metrics:
        return None
    num = min(WINDOW_STEPS, len(finite) // 2)
    losses = [loss for _, loss in finite]
    return {
        "step": finite[-1][0] if finite else None,
        "last": losses[-1] if losses else None,
        "num_steps_averaged": num,
        "mean": statistics.fmean(losses[-num:]) if num else None,
        "mean_before": statistics.fmean(losses[-2 * num : -num]) if num else None,
        "num_without": sum(_finite(line.get("loss")) is None for line in metrics[-WINDOW_STEPS:]),
    }


def _validation(lines: list[dict]) -> list[dict]:
    """Of each set the newest validation, the one before it, the best; in the order in which sets were first told of."""
    sets: dict[str, list[dict]] = {}
    for line in lines:
        if isinstance(line.get("step"), int):
            sets.setdefault(str(line.get("set", MAIN_SET)), []).append(line)
    return [_validated_set(name, of_set) for name, of_set in sets.items()]


def _validated_set(name: str, lines: list[dict]) -> dict:
    losses = [_finite(line.get("loss")) for line in lines]
    best = min(
        ((loss, line["step"]) for line, loss in zip(lines, losses, strict=True) if loss is not None), default=None
    )
    return {
        "set": name,
        "num": len(lines),
        "step": lines[-1]["step"],
        "loss": losses[-1],
        "loss_before": losses[-2] if len(losses) > 1 else None,
        "best_loss": best and best[0],
        "best_step": best and best[1],
        **{key: _finite(lines[-1].get(key)) for key in ("perplexity", "bits_per_byte", "accuracy")},
        "num_questions": lines[-1].get("num_questions"),
        "duration_s": _finite(lines[-1].get("duration_s")),
    }


def _bad_steps(path: Path, told: list[dict]) -> dict | None:
    """How many there were, a step that was repeated twice, and the last: from its event, and of an old run the file."""
    lines = run_files.tail_lines(path)
    num, last = max(run_files.count_lines(path), len(told)), (told or lines)[-1:]
    if not last:
        return None
    samples = lines[-1].get("sample_ids") if lines else None
    return {
        "num": num,
        "last": {key: last[0].get(key) for key in ("step", "what", "loss", "applied")}
        | {"num_samples": len(samples) if isinstance(samples, list) else None},
    }


def _aged(entry: dict, now_s: float) -> dict:
    """A checkpoint with its age; a clock that is ahead of this one makes none negative."""
    return {key: value for key, value in entry.items() if key != "written_s"} | {
        "written": _utc(entry["written_s"]),
        "age_s": max(0.0, now_s - entry["written_s"]),
    }


def _finite(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def _utc(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).isoformat(timespec="seconds")
