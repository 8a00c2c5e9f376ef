"""Sample pages: what the model answered along the run, and pictures that lie in the run folder."""

import base64
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.report.record import RunRecord

MAX_SAMPLES, MAX_ANSWERS = 12, 6
"""Samples of a set that are shown, the first, and answers of each: the first, the last and some between."""

MAX_PICTURE_BYTES = 1_000_000
"""Of a picture that the page carries."""

PICTURES = {"preview.png": "The first rows as the model gets them (preview.png)."}
"""File in the run folder -> what it shows."""


@dataclass(frozen=True, slots=True)
class AnsweredSample:
    """One question of a validation set and what the model said to it."""

    id: str
    question: str
    expected: str
    answers: list[tuple[int, str]]
    """Step and answer, ascending."""


def answered_samples(run: RunRecord) -> dict[str, list[AnsweredSample]]:
    """Name of the set -> its first samples."""
    found: dict[str, dict[str, list[dict]]] = {}
    for line in run.generations:
        if isinstance(line.get("step"), int):
            found.setdefault(str(line.get("set")), {}).setdefault(str(line.get("sample_id")), []).append(line)
    return {name: [_sample(*entry) for entry in list(lines.items())[:MAX_SAMPLES]] for name, lines in found.items()}


def pictures(run: RunRecord) -> list[tuple[str, str]]:
    """What a picture shows and its content as an address within the page."""
    return [
        (text, _data_uri(run.folder / name))
        for name, text in PICTURES.items()
        if (run.folder / name).is_file() and (run.folder / name).stat().st_size <= MAX_PICTURE_BYTES
    ]


def _sample(sample_id: str, lines: list[dict]) -> AnsweredSample:
    newest = {line["step"]: line for line in lines}  # of a step that was repeated, the later answer
    steps = sorted(newest)
    num = min(MAX_ANSWERS, len(steps))
    shown = [steps[round(place * (len(steps) - 1) / max(1, num - 1))] for place in range(num)]
    last = newest[steps[-1]]
    answers = [(step, str(newest[step].get("answer", ""))) for step in shown]
    return AnsweredSample(sample_id, str(last.get("question", "")), str(last.get("expected", "")), answers)


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
