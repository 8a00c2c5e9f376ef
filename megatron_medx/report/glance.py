"""Head of the page: what the run is, whether it is healthy, and its few most important numbers."""

import datetime
from dataclasses import dataclass

import numpy as np

from megatron_medx.config.validation import MAIN_SET
from megatron_medx.report.definitions import Definition, definition
from megatron_medx.report.record import RunRecord
from megatron_medx.report.tables import NOTHING, number
from megatron_medx.status.history_lines import attention
from megatron_medx.status.words import duration


@dataclass(frozen=True, slots=True)
class Tile:
    """One number of the head."""

    label: str
    value: str
    unit: str
    what: Definition
    note: str = ""
    """A few words below it."""


def glance(run: RunRecord, now_s: float) -> dict:
    """What the head of the page says; see head.html.jinja."""
    status = run.status
    steps, left = status["steps"], status["left"]
    return {
        "name": run.name,
        "recipe": status["recipe"] or "no recipe yet",
        "ranks": status["num_ranks"],
        "commit": run.provenance.get("commit", "unknown"),
        "state": status["state"],
        "attention": [text for _, text in attention(status)],
        "step": status["step"],
        "steps": steps,
        "share": min(1.0, status["step"] / steps) if steps else None,
        "left": None if left is None else duration(left["time_s"]),
        "made": f"{datetime.datetime.fromtimestamp(now_s, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
        "tiles": list(_tiles(run)),
    }


def _tiles(run: RunRecord):
    losses = np.asarray(run.steps.column("loss"))
    finite = losses[~np.isnan(losses)]
    if len(finite):
        yield _tile("step.loss", finite[-1], f"first {number(float(finite[0]))}", "loss, last")
    for name, lines in run.validations.items():
        losses = [line["loss"] for line in lines if isinstance(line.get("loss"), int | float)]
        if losses and name in (MAIN_SET, next(iter(run.validations))):
            yield _tile("validation.loss", losses[-1], f"best {number(min(losses))}", f"{name}, last loss")
    if (speed := run.status["speed"]) is not None:
        over = f"median of {speed['num_steps']} steps"
        yield _tile("derived.tokens_per_s", speed["tokens_per_s"], over)
        yield _tile("step.step_time_s", speed["step_time_s"], over)
        yield _tile("derived.data_wait_share", speed["data_wait_share"], "of step time")
        mfu = np.asarray(run.steps.column("mfu"))[-speed["num_steps"] :]
        if not np.isnan(mfu).all():
            yield _tile("step.mfu", float(np.nanmedian(mfu)), over)
        else:
            yield _tile("step.model_tflops_per_s", speed["model_tflops_per_s_per_rank"], over)
    memory = np.asarray(run.steps.column("memory_gb"))
    if not np.isnan(memory).all():
        yield _tile("step.memory_gb", float(np.nanmax(memory)), "most so far")
    launches = run.status["launches"]
    if launches:
        repeated = sum(entry["steps_repeated"] or 0 for entry in launches)
        yield _tile("derived.restarts", len(launches) - 1, f"{number(repeated)} steps repeated")


def _tile(name: str, value: float | None, note: str, label: str = "") -> Tile:
    what = definition(name)
    shown = NOTHING if value is None else number(float(value), what.unit)
    return Tile(label or what.label, shown, "" if what.unit == what.label else what.unit, what, note)
