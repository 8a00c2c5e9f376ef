"""What a tracker of runs is: TensorBoard, Weights & Biases, MLflow; and the names and values that all of them get."""

import json
import re
import statistics
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from megatron_medx.config.run import RunConfig
from megatron_medx.run_folder.names import TRACKERS_FILE
from megatron_medx.run_folder.quantities import RANKS, STEP, VALIDATION, tracked_name


class Tracker(Protocol):
    """One service or file format that a run is told to. Whatever it raises ends it, never the run."""

    name: str
    """What people call it."""

    def start(self, config: RunConfig, folder: Path, first_step: int) -> None:
        """Begin, or go on with what an earlier launch of the run began.

        Args:
            config: the run.
            folder: run folder.
            first_step: the first that this launch tells of; what was told of later ones is repeated.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of a step by name; steps of one name ascend, those of different names need not."""

    def tell(self, step: int, name: str, text: str) -> None:
        """Take a text of a step."""

    def finish(self) -> None:
        """Send what is left and end."""


def step_values(line: Mapping) -> dict[str, float]:
    """Numbers of a line of metrics.jsonl, by tracked name; what is null is left out."""
    values = {tracked_name(STEP, key): value for key, value in line.items() if key in STEP and key != "step"}
    return _numbers(values)


def rank_values(line: Mapping) -> dict[str, float]:
    """Of each list of a line of ranks.jsonl the largest value and the median: `ranks/busy_s/max`, `.../median`."""
    names = {key: tracked_name(RANKS, key) for key, value in line.items() if isinstance(value, list)}
    taken = {"max": max, "median": statistics.median}
    return {f"{names[key]}/{word}": take(line[key]) for key in names for word, take in taken.items()}


def validation_values(line: Mapping) -> dict[str, float]:
    """Numbers of a line of validation.jsonl, by tracked name; `.../by_source/<name>` is that source's loss."""
    values = {}
    for key in VALIDATION.keys() & line.keys() - {"step", "set"}:
        value = line[key]
        if isinstance(value, Mapping):
            value = {name: part["loss"] for name, part in value.items()}
        values[tracked_name(VALIDATION, key, line["set"])] = value
    return _numbers(values)


def generations_name(line: Mapping) -> str:
    """What trackers call a sample generation: `validation/<set>/generations/<sample>`."""
    return _allowed(f"validation/{line['set']}/generations/{line['sample_id']}")


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    """Numbers alone, those of a table under its name and theirs."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        parts = {f"{name}/{part}": of for part, of in value.items()} if isinstance(value, Mapping) else {name: value}
        flat |= {_allowed(key): number for key, number in parts.items() if isinstance(number, int | float)}
    return flat


def _allowed(name: str) -> str:
    """The name with what MLflow refuses in one, so that a folder is called the same everywhere."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)


_ids = threading.Lock()
"""Trackers start side by side, and keep their ids in one file."""


def kept_id(folder: Path, tracker: str) -> str | None:
    """What a tracker called the run in an earlier launch; None in the first."""
    path = folder / TRACKERS_FILE
    return json.loads(path.read_text()).get(tracker) if path.exists() else None


def keep_id(folder: Path, tracker: str, run_id: str) -> None:
    """Write down what a tracker calls the run."""
    path = folder / TRACKERS_FILE
    with _ids:
        ids = json.loads(path.read_text()) if path.exists() else {}
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(ids | {tracker: run_id}) + "\n")
        draft.replace(path)
