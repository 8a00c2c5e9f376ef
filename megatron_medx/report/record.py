"""Everything that the page tells of one run, read from its folder while others may be writing there.

Comes in: a run folder that may be of an older version, without steps yet, or being written. Goes out: a RunRecord; what
is absent is empty.
"""

from dataclasses import dataclass
from pathlib import Path

from megatron_medx.config.checkpoint_folders import RUN_FILE
from megatron_medx.config.files import read_provenance, read_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.config.validation import MAIN_SET, VALIDATION_FILE
from megatron_medx.run_folder import events as run_events
from megatron_medx.run_folder.names import (
    BAD_STEPS_FILE,
    GENERATIONS_FILE,
    METRICS_FILE,
    PROFILE,
    RANKS_FILE,
    REJECTS_FILE,
)
from megatron_medx.status.report import run_status
from megatron_medx.status.run_files import tail_lines
from megatron_medx.status.series import RankSeries, StepSeries, ValidationSeries

MAX_RANK_LINES = 240
"""Columns of the heat map of ranks."""

GENERATIONS_BYTES = 32 * 2**20
"""Of generations.jsonl that are read, from its end."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as its files tell it."""

    folder: Path
    status: dict
    """Of status/report.py."""
    config: RunConfig | None
    """None where a job has only just taken the folder."""
    provenance: dict
    """Command, date, commit and versions that the launch wrote; empty where it wrote none."""
    events: list[dict]
    steps: StepSeries
    ranks: RankSeries
    validations: dict[str, list[dict]]
    """Lines by the name of the set."""
    generations: list[dict]
    bad_steps: list[dict]
    rejects: list[dict]
    """Samples that were damaged since the build, the last ones."""
    profiles: list[tuple[str, str]]
    """Name and text of the summaries of training.profile."""

    @property
    def name(self) -> str:
        """What people call the run: its folder."""
        return self.folder.absolute().name

    @property
    def last_step(self) -> int:
        """The last that metrics.jsonl tells of; 0 before the first."""
        return self.steps.steps[-1] if len(self.steps.steps) else 0


def read_record(folder: Path, now_s: float) -> RunRecord:
    """Read a run.

    Args:
        folder: of the run.
        now_s: seconds since 1970, for ages and whether it still runs.

    Raises:
        ConfigError: it is no run folder, or a file in it cannot be read.
    """
    status = run_status(folder, now_s)
    has_config = (folder / RUN_FILE).is_file()
    steps, ranks = StepSeries(folder / METRICS_FILE), RankSeries(folder / RANKS_FILE, MAX_RANK_LINES)
    validations = ValidationSeries(folder / VALIDATION_FILE, MAIN_SET)
    for series in (steps, ranks, validations):
        series.refresh()
    return RunRecord(
        folder=folder,
        status=status,
        config=read_run_yaml(folder / RUN_FILE) if has_config else None,
        provenance=read_provenance(folder / RUN_FILE) if has_config else {},
        events=run_events.read(folder),
        steps=steps,
        ranks=ranks,
        validations=validations.sets,
        generations=tail_lines(folder / GENERATIONS_FILE, GENERATIONS_BYTES),
        bad_steps=tail_lines(folder / BAD_STEPS_FILE),
        rejects=tail_lines(folder / REJECTS_FILE),
        profiles=_profiles(folder / PROFILE),
    )


def _profiles(folder: Path) -> list[tuple[str, str]]:
    return [(path.name, path.read_text(encoding="utf-8", errors="replace")) for path in sorted(folder.glob("*.txt"))]
