"""Where the hours of a run went, and which ranks held it up."""

import warnings

import numpy as np

from megatron_medx.report.definitions import definition
from megatron_medx.report.record import RunRecord
from megatron_medx.report.tables import Column, Table, number, number_column, text_column
from megatron_medx.status import history
from megatron_medx.status.words import counted, duration

MAX_RANKS = 16
"""Rows of the table of ranks, the slowest; the heat map has all."""


def time_table(run: RunRecord) -> Table:
    """Seconds of the run by what they went into, the share of each, and what it is taken from."""
    times_s = np.nan_to_num(np.asarray(run.steps.column("step_time_s")))
    waits_s = np.nan_to_num(np.asarray(run.steps.column("data_wait_s")))
    launches, num_steps = run.status["launches"], counted(len(times_s), "step")
    saves_s = [entry.get("save_s") for entry in history.told(run.events, "saved")]
    starts_s = [entry["start_s"] for entry in launches]
    checks_s = [line.get("duration_s") for lines in run.validations.values() for line in lines]
    repeated = sum(entry["steps_repeated"] or 0 for entry in launches)
    median_s = float(np.median(times_s)) if len(times_s) else 0.0
    parts = [
        ("derived.trained_s", float(times_s.sum() - waits_s.sum()), num_steps),
        ("derived.waited_s", float(waits_s.sum()), num_steps),
        ("derived.validated_s", _sum(checks_s), counted(len(checks_s), "validation")),
        ("derived.saved_s", _sum(saves_s), counted(len(saves_s), "save")),
        ("derived.started_s", _sum(starts_s), counted(len(starts_s), "launch").replace("launchs", "launches")),
        ("derived.repeated_s", repeated * median_s, counted(repeated, "step")),
    ]
    total_s = sum(time_s for _, time_s, _ in parts) or 1.0
    columns = [text_column("part"), text_column("time"), text_column("share, %"), text_column("of")]
    table = Table(columns, note="Shares are of the parts that the run's files tell of, not of the clock.")
    for name, time_s, of in parts:
        table.rows.append([definition(name), duration(time_s), number(time_s / total_s, "%"), of])
    return table


def rank_lateness(run: RunRecord) -> np.ndarray | None:
    """How much later than the median rank each had its gradients, in %: (R, N), nan where a line lacks the rank.

    None where ranks.jsonl tells of fewer than two ranks.
    """
    lines = [line for line in run.ranks.by_line("busy_s") if len(line)]
    if run.ranks.num_ranks < 2 or not lines:
        return None
    busy = np.full((run.ranks.num_ranks, len(lines)), np.nan)
    for number_of_line, line in enumerate(lines):
        busy[: len(line), number_of_line] = line
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns of a line without any number
        median = np.nanmedian(busy, axis=0)
    return 100 * (busy / np.where(median > 0, median, np.nan) - 1)


def rank_table(run: RunRecord) -> Table | None:
    """The slowest ranks by the median of the last lines of ranks.jsonl; None without such lines."""
    newest = [line for line in run.ranks.newest if isinstance(line.get("busy_s"), list)]
    if not newest:
        return None
    columns = {key: _medians(newest, key) for key in ("busy_s", "step_time_s", "data_wait_s", "memory_gb")}
    busy_s = columns["busy_s"]
    median_s = float(np.nanmedian(busy_s)) if not np.isnan(busy_s).all() else float("nan")
    order = np.argsort(-np.nan_to_num(busy_s, nan=-1.0), kind="stable")[:MAX_RANKS]
    table = Table(
        [
            Column("rank", None, is_number=True),
            number_column("ranks.busy_s"),
            number_column("derived.rank_lateness"),
            *(number_column(f"ranks.{key}") for key in ("step_time_s", "data_wait_s", "memory_gb")),
        ],
        note=f"Medians of the last {counted(len(newest), 'line')}, up to step {newest[-1]['step']:,}; "
        + (f"the {MAX_RANKS} slowest of {len(busy_s):,} ranks." if len(busy_s) > MAX_RANKS else "all ranks."),
    )
    for rank in order.tolist():
        late = busy_s[rank] / median_s - 1 if median_s > 0 else float("nan")
        others = [number(float(columns[key][rank])) for key in ("step_time_s", "data_wait_s", "memory_gb")]
        table.rows.append([f"{rank:,}", number(float(busy_s[rank])), number(float(late), "%"), *others])
    return table


def _medians(lines: list[dict], key: str) -> np.ndarray:
    """The median over lines for each rank of the newest; nan where it has no number."""
    num_ranks = len(lines[-1]["busy_s"])
    values = np.full((len(lines), num_ranks), np.nan)
    for row, line in enumerate(lines):
        found = line.get(key)
        for rank, value in enumerate((found if isinstance(found, list) else [])[:num_ranks]):
            values[row, rank] = value if isinstance(value, int | float) else np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns of a rank without any number
        return np.nanmedian(values, axis=0)


def _sum(values: list) -> float:
    return float(sum(value for value in values if isinstance(value, int | float)))
