"""One run as `medx watch` sees it: what its files say now, and what they said as long as they could be read.

Comes in: a run folder that others write to, or remove. Goes out: the report of `medx status`, columns of steps,
validations by set, lines of ranks. Files are looked into only when they changed.
"""

import math
import statistics
from pathlib import Path

from megatron_medx.config.checkpoint_folders import CHECKPOINTS, RUN_FILE, TRACKER_FILE
from megatron_medx.config.validation import VALIDATION_FILE
from megatron_medx.errors import ConfigError
from megatron_medx.run_folder.names import BAD_STEPS_FILE, EVENTS_FILE, LOGS, METRICS_FILE, RANKS_FILE, rank_log
from megatron_medx.run_folder.quantities import MAIN_SET
from megatron_medx.status.appended import fingerprint
from megatron_medx.status.planned_mixture import planned_shares
from megatron_medx.status.report import WINDOW_STEPS, run_status
from megatron_medx.status.run_files import tail_lines
from megatron_medx.status.series import StepSeries, ValidationSeries

WATCHED = (
    *(RUN_FILE, EVENTS_FILE, METRICS_FILE, RANKS_FILE, VALIDATION_FILE, BAD_STEPS_FILE),
    *(f"{CHECKPOINTS}/{TRACKER_FILE}", f"{LOGS}/{rank_log(0)}"),
)
"""Files whose change is a reason to look into a run."""

AT_LEAST_EVERY_S = 10.0
"""Seconds after which a run is looked into all the same: its state also depends on how long nothing was written."""

PERCENTILE_STEPS = 1_000
"""Last steps that percentiles are taken over."""

RANK_LINES = 20
"""Last lines of ranks.jsonl that a rank's median is taken over, and how much of the file is read for them."""
RANK_TAIL_BYTES = 2**18


class WatchedRun:
    """A run folder and what was last read of it.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.absolute().name
        self.report: dict | None = None
        """Of status/report.py; of the last time that it could be made."""
        self.problem: str | None = None
        """Why the folder cannot be read now."""
        self.steps = StepSeries(folder / METRICS_FILE)
        self.validations = ValidationSeries(folder / VALIDATION_FILE, MAIN_SET)
        self.rank_lines: list[dict] = []
        self.planned: dict[str, float] = {}
        """Share of tokens by source, at the last step."""
        self._seen: list | None = None
        self._seen_s = 0.0

    def look(self, now_s: float) -> None:
        """Read what changed.

        Args:
            now_s: seconds since 1970.

        Raises:
            ConfigError: it is no run folder, or a file in it cannot be read. What was read before stays.
        """
        files = [fingerprint(self.folder / name) for name in WATCHED]
        if files == self._seen and 0 <= now_s - self._seen_s < AT_LEAST_EVERY_S and self.problem is None:
            return
        try:
            self.report = run_status(self.folder, now_s)
            self.steps.refresh()
            self.validations.refresh()
            self.rank_lines = tail_lines(self.folder / RANKS_FILE, RANK_TAIL_BYTES)[-RANK_LINES:]
            self.planned = planned_shares(self.folder, sum(value for value in self.steps.column("tokens") if value > 0))
        except ConfigError as error:
            self.problem = error.found
            raise
        except OSError as error:
            self.problem = f"{error.filename}: {error.strerror}"
            raise ConfigError(
                self.problem, "files of the run that can be read", "ask their owner for access, or mend the disk"
            ) from error
        self.problem, self._seen, self._seen_s = None, files, now_s

    def newest(self, key: str) -> float | None:
        """The last value of a column within the last WINDOW_STEPS; None where none of these steps has one."""
        values = self._last(key, WINDOW_STEPS)
        return values[-1] if values else None

    def median(self, key: str) -> float | None:
        """Of a column over the last WINDOW_STEPS."""
        values = self._last(key, WINDOW_STEPS)
        return statistics.median(values) if values else None

    def percentile(self, key: str, percent: int) -> float | None:
        """The smallest value that so many percent of the last PERCENTILE_STEPS do not exceed."""
        values = sorted(self._last(key, PERCENTILE_STEPS))
        return values[max(0, -(-len(values) * percent // 100) - 1)] if values else None

    def mixture(self) -> dict[str, float]:
        """Share of each source in the tokens of the last WINDOW_STEPS."""
        sums = {
            name: sum(value for value in values[-WINDOW_STEPS:] if value > 0)
            for name, values in self.steps.sources.items()
        }
        total = sum(sums.values())
        return {name: tokens / total for name, tokens in sums.items()} if total else {}

    def slowest_rank(self) -> tuple[int, float] | None:
        """The rank with the largest median of `busy_s` over the last lines, and seconds behind the median rank.

        None of one rank, or where no line has times. Lines of another number of ranks, of an earlier launch, are left
        out.
        """
        lines = [line["busy_s"] for line in self.rank_lines if _are_numbers(line.get("busy_s"))]
        lines = [busy_s for busy_s in lines if len(busy_s) == len(lines[-1])]
        if not lines or len(lines[-1]) < 2:
            return None
        medians = [statistics.median(times) for times in zip(*lines, strict=True)]
        slowest = max(range(len(medians)), key=medians.__getitem__)
        return slowest, medians[slowest] - statistics.median(medians)

    def _last(self, key: str, num_steps: int) -> list[float]:
        """Values of the last steps that have one, oldest first."""
        return [value for value in self.steps.column(key)[-num_steps:] if not math.isnan(value)]


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) in (int, float) for value in values)
