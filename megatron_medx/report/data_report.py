"""What a run is fed with: the mixture as planned and as it came, and what its data folders hold.

Comes in: the tokens by source of metrics.jsonl, the plan in RUN/data, and the data folders where they still lie. Goes
out: tables; what can no longer be looked at is said.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_medx.data.builder.report import REPORT_FILE
from megatron_medx.data.index import MANIFEST_FILE
from megatron_medx.data.plan.mixture import MixtureSource
from megatron_medx.report.record import RunRecord
from megatron_medx.report.tables import Column, Table, number, number_column, text_column
from megatron_medx.run_folder.names import DATA
from megatron_medx.run_folder.sources import source_names
from megatron_medx.status.planned_mixture import PLAN_FILE

COUNTED = ("modality", "source", "license", "language")
"""What report.json counts samples by."""

MAX_NAMES = 12
"""Names of one of these that are told, the most frequent."""


@dataclass(slots=True)
class DataFolder:
    """One data folder as it lies there now."""

    use: str
    """What the run does with it: `trained on`, `validation`, or the name of a set."""
    path: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    absent: str = ""
    """What of it cannot be told, and why."""


def mixture_table(run: RunRecord) -> Table:
    """A row for each source: its share as planned, and as it came in all steps so far."""
    tokens = {name: float(np.nansum(np.asarray(values))) for name, values in run.steps.sources.items()}
    total = sum(tokens.values())
    planned = _planned_shares(run, total)
    table = Table(
        [
            text_column("source"),
            number_column("derived.mixture_share", "planned"),
            number_column("derived.mixture_share", "realized"),
            number_column("step.source_tokens"),
        ],
    )
    for name in dict.fromkeys([*planned, *tokens]):
        came = tokens.get(name)
        share = None if came is None or not total else came / total
        table.rows.append([name, number(planned.get(name), "%"), number(share, "%"), number(came)])
    missing = [] if planned else [f"{DATA}/{PLAN_FILE} does not tell what was planned."]
    missing += [] if tokens else ["metrics.jsonl does not tell sources apart: no step is done, or of an older version."]
    table.note = " ".join(missing)
    return table


def data_folders(run: RunRecord) -> list[DataFolder]:
    """The folders that the run is trained and validated on, with what their own reports say."""
    if run.config is None:
        return []
    data = run.config.data
    uses = [("trained on", path) for path in run.config.data_folders if data.path]
    uses += [("validation", Path(data.validation_path))] if data.validation_path else []
    uses += [(name, Path(path)) for name, path in data.validation_sets.items()]
    return [_folder(use, path) for use, path in uses]


def plan_table(run: RunRecord) -> Table | None:
    """What became of the samples of each source in this run; None where the plan is not there."""
    counts = _plan(run).get("counts")
    if not isinstance(counts, dict) or not counts:
        return None
    names = ("num_samples", "num_tokens", "num_thinned", "num_scaled", "num_rejected")
    labels = ("samples", "tokens", "lost slices", "lost resolution", "too long for a row")
    table = Table([text_column("source"), *(Column(label, is_number=True) for label in labels)])
    for source, found in zip(source_names(list(counts)), counts.values(), strict=True):
        table.rows.append([source, *(number(found.get(name)) for name in names)])
    return table


def _planned_shares(run: RunRecord, tokens: float) -> dict[str, float]:
    """Mean share of each source, as planned, from the begin to a token of the run; none where no plan tells them."""
    plan = _plan(run)
    counts, pieces = plan.get("counts"), plan.get("pieces")
    if not isinstance(counts, dict) or not isinstance(pieces, dict) or not counts:
        return {}
    knots = [pieces.get(f"source {number}: weight") for number in range(len(counts))]
    if None in knots:
        weights = [found.get("num_tokens", 0) for found in counts.values()]
    else:
        sources = [MixtureSource(Path(path), tuple(map(tuple, each))) for path, each in zip(counts, knots, strict=True)]
        weights = [float(source.weight_between(0, max(1, round(tokens)))) for source in sources]
    total = sum(weights)
    return {name: weight / total for name, weight in zip(source_names(list(counts)), weights, strict=True) if total}


def _plan(run: RunRecord) -> dict:
    return _read_json(run.folder / DATA / PLAN_FILE)


def _folder(use: str, path: Path) -> DataFolder:
    folder = DataFolder(use, str(path))
    manifest, report = _read_json(path / MANIFEST_FILE), _read_json(path / REPORT_FILE)
    if not manifest:
        folder.absent = (
            f"{path / MANIFEST_FILE} cannot be read from here: the folder has moved, or lies on another disk."
        )
        return folder
    folder.facts.append(("samples", number(manifest.get("num_samples"))))
    rejected = report.get("rejected")
    reasons = _counts(rejected) if isinstance(rejected, dict) else ""
    folder.facts.append(("rejected", number(manifest.get("num_rejected")) + (f": {reasons}" if reasons else "")))
    if not report:
        folder.absent = f"{path / REPORT_FILE} is not there, so modalities and licenses are not known."
        return folder
    tokens = report.get("text_tokens") if isinstance(report.get("text_tokens"), dict) else {}
    folder.facts.append(("text tokens", f"{number(tokens.get('sum'))}, longest sample {number(tokens.get('longest'))}"))
    images = f"{number(report.get('images'))} of {number(report.get('image_tokens'))} tokens"
    folder.facts.append(("images", images))
    folder.facts += [(name, _counts(report[name])) for name in COUNTED if isinstance(report.get(name), dict)]
    return folder


def _counts(counts: dict) -> str:
    named = sorted(counts.items(), key=lambda item: -item[1] if isinstance(item[1], int) else 0)
    more = f" and {len(named) - MAX_NAMES} more" if len(named) > MAX_NAMES else ""
    return ", ".join(f"{name or 'not stated'} {number(count)}" for name, count in named[:MAX_NAMES]) + more


def _read_json(path: Path) -> dict:
    """The object in a file; empty where it is not there, is damaged, or may not be read, which the page then says."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
