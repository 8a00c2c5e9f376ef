"""How a run is doing, from the files of its folder alone: on any host that sees them, without torch, in a moment.

Comes in: a run folder. Goes out: a dict of plain values, for `lines.py` and `--json`. Nothing asks the scheduler or
looks for processes: a run counts as running while it writes, and a killed one until its patience is over.
"""

import datetime
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from megatron_medx.config.checkpoint_folders import CHECKPOINTS, RUN_FILE, TRACKER_FILE
from megatron_medx.config.exports import EXPORTS
from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.config.validation import VALIDATION_FILE
from megatron_medx.errors import ConfigError
from megatron_medx.run_folder.names import BAD_STEPS_FILE, DATA, ERROR_FILE, LOGS, METRICS_FILE, REJECTS_FILE
from megatron_medx.status import run_files
from megatron_medx.status.launches import launches

WINDOW_STEPS = 50
"""Last steps that medians and means are taken over."""

PATIENCE_STEPS, PATIENCE_S = 20, 120.0
"""A run is running until nothing was written for so many median steps, and at least so many seconds: a save or a
validation may lie between two steps."""

START_PATIENCE_S = 900.0
"""The same before the first step of a start: libraries, the plan of the data and a checkpoint are read first."""

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
    config = read_run_yaml(folder / RUN_FILE)
    try:
        return _status(folder, config, now_s)
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}",
            "files of the run that can be read",
            "ask their owner for access, or look again from a host that sees the disk",
        ) from error


def _check_folder(folder: Path) -> None:
    if (folder / RUN_FILE).is_file() and folder.absolute().name != CHECKPOINTS:
        return
    if not folder.exists():
        found, do = f"no folder {folder}", "correct the path"
    elif not folder.is_dir():
        found, do = f"{folder} is a file", f"medx status {folder.parent}"
    elif (folder / RUN_FILE).is_file():
        found, do = f"{folder} holds the checkpoints of a run", f"medx status {folder.absolute().parent}"
    else:
        found = f"{folder} is no run folder: it holds no {RUN_FILE}"
        do = f"correct the path; a run that is being prepared has its {RUN_FILE} when that is done"
    raise ConfigError(found, "the folder that `medx train` names when it starts a run", do)


def _status(folder: Path, config: RunConfig, now_s: float) -> dict:
    metrics = [line for line in run_files.tail_lines(folder / METRICS_FILE) if isinstance(line.get("step"), int)]
    tracked, speed = run_files.tracked_step(folder / CHECKPOINTS), _speed(metrics[-WINDOW_STEPS:])
    step, steps = metrics[-1]["step"] if metrics else 0, config.training.steps
    state = _state(folder, steps, step, speed, now_s)
    is_running = state["name"] == "running" and speed is not None
    num_checkpoints, checkpoints = run_files.checkpoint_entries(folder / CHECKPOINTS, NUM_CHECKPOINTS)
    return {
        "folder": str(folder),
        "recipe": config.run.recipe,
        "num_ranks": config.parallel.world_size,
        "read_at": _utc(now_s),
        "state": state,
        "step": step,
        "steps": steps,
        "left_s": max(0, steps - step) * speed["step_time_s"] if is_running else None,
        "loss": _loss(metrics),
        "validation": _validation(run_files.tail_lines(folder / VALIDATION_FILE)),
        "exports": run_files.exports_found(folder / EXPORTS) if (folder / EXPORTS).is_dir() else None,
        "speed": speed,
        "checkpoints": {
            "num": num_checkpoints,
            "resume_step": tracked or None,
            "steps_since": max(0, step - tracked),
            "every_steps": config.checkpoint.every_steps,
            "last": [_aged(entry, now_s) for entry in checkpoints],
        },
        "launches": launches(folder),
        "bad_steps": _bad_steps(folder / BAD_STEPS_FILE),
        "rejects": {
            "damaged": run_files.count_lines(folder / REJECTS_FILE),
            "too_long": run_files.count_lines(folder / DATA / REJECTS_FILE),
        },
    }


def _state(folder: Path, steps: int, step: int, speed: dict | None, now_s: float) -> dict:
    """`name`, `why` in words, `since`: when it began, or for a running one the last sign of life; UTC.

    And `error`, of a run that stopped with one, or the traceback that a stale one's log ends with.
    """
    logs, checkpoints = folder / LOGS, folder / CHECKPOINTS
    stepped_s = run_files.written_s(folder / METRICS_FILE)
    prepared_s = run_files.written_s(folder / RUN_FILE)  # by each launch, before its ranks start
    signs = (prepared_s, stepped_s, *map(run_files.written_s, _signs_of_life(folder)))
    sign_s = max(sign for sign in signs if sign is not None)
    if (error := run_files.error_text(folder)) is not None:
        since_s = run_files.written_s(logs / ERROR_FILE) or sign_s
        return _named("stopped", "with an error", since_s, error)
    if step >= steps and run_files.tracked_step(checkpoints) >= steps:
        return _named("finished", "the last step is done and saved", stepped_s or sign_s)
    if stepped_s is None and not (logs / "rank_0.log").is_file():
        return _named("not started", "the folder is prepared, no rank has started", prepared_s)
    is_starting = stepped_s is None or prepared_s > stepped_s
    if is_starting:
        patience_s, doing = START_PATIENCE_S, "it starts, no step of this start is done yet"
    else:
        patience_s = max(PATIENCE_S, PATIENCE_STEPS * speed["step_time_s"] if speed else 0.0)
        doing = "the last step is done, its checkpoint is not" if step >= steps else "it writes"
    if now_s - sign_s <= patience_s:
        return _named("running", doing, sign_s)
    why = f"nothing was written for longer than {patience_s:.0f} s"
    if is_starting or step >= steps:
        why += f"; then: {doing}"
    fallen = run_files.last_words(logs) if logs.is_dir() else None
    return _named("stale", why, sign_s, None if fallen is None else f"{fallen[0]}: {fallen[1]}")


def _signs_of_life(folder: Path) -> Iterable[Path]:
    """What is written while no step ends: validation, saves (Megatron tells of them in the log of rank 0)."""
    return (
        folder / VALIDATION_FILE,
        folder / CHECKPOINTS / TRACKER_FILE,
        folder / LOGS / "rank_0.log",
    )


def _named(name: str, why: str, since_s: float, error: str | None = None) -> dict:
    return {"name": name, "why": why, "since": _utc(since_s), "error": error}


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


def _validation(lines: list[dict]) -> dict | None:
    """The newest validation, the one before it, the best."""
    lines = [line for line in lines if isinstance(line.get("step"), int)]
    if not lines:
        return None
    losses = [_finite(line.get("loss")) for line in lines]
    best = min(
        ((loss, line["step"]) for line, loss in zip(lines, losses, strict=True) if loss is not None), default=None
    )
    return {
        "num": len(lines),
        "step": lines[-1]["step"],
        "loss": losses[-1],
        "loss_before": losses[-2] if len(losses) > 1 else None,
        "best_loss": best and best[0],
        "best_step": best and best[1],
    }


def _bad_steps(path: Path) -> dict | None:
    """How many lines there are, a step that was repeated twice, and the last."""
    num, last = run_files.count_lines(path), run_files.tail_lines(path)[-1:]
    if not num or not last:
        return None
    samples = last[0].get("sample_ids")
    return {
        "num": num,
        "last": {key: last[0].get(key) for key in ("step", "what", "loss")}
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
