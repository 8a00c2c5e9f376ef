"""`training.on_bad_loss=rollback`: where bad steps repeat, go back behind them and leave their rows out.

After `survival.bad_steps` bad steps in succession, none of which was applied:

1. The tracker names the newest checkpoint before the first of them, and those saved since are renamed
   `rolled-back-...`: their weights are sound, but they stand amid the rows that are left out. From there on positions
   mean other rows, so a run that went on from one would miss the rows behind it.
2. Their rows, whole global batches, are added to `skipped_rows.jsonl` (run_folder/skipped_rows.py).
3. Every rank raises `StartAgain`, and the run goes on from that checkpoint, or from its start where there is none.

In this order, because a run that is killed in between then repeats steps with the rows they had, and meets the bad ones
again. A launch that begins amid bad steps counts from its first step. A run with more than `survival.max_rollbacks`
stops.
"""

from pathlib import Path

import megatron.training.training as megatron_loop
import torch.distributed as dist

from megatron_medx.config.checkpoint_folders import CHECKPOINTS, METADATA_FILE, RUN_FILE, TRACKER_FILE
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import DataError
from megatron_medx.run_folder import events
from megatron_medx.run_folder.integrity import LATEST, folder_name, free_name, steps_on_disk, write_at_once
from megatron_medx.run_folder.names import BAD_STEPS_FILE
from megatron_medx.run_folder.skipped_rows import SkippedRows, add_skip, merged, read_skips, row_at
from megatron_medx.training.interruption import StartAgain

ROLLED_BACK = "rolled-back-"
"""What the name of a checkpoint begins with that no run goes on from any more."""


class Rollback:
    """Counts bad steps in succession; ends the launch when there are too many.

    Args:
        config: the run.
        folder: run folder.
        is_reporter: whether this rank, the last one, writes.

    Raises:
        CheckpointError: the file of skipped rows is spoiled.
    """

    def __init__(self, config: RunConfig, folder: Path, is_reporter: bool):
        self._folder, self._is_reporter = folder, is_reporter
        self._limits, self._rows_per_step = config.survival, config.training.global_batch_rows
        # As it was when the launch began: the reporter adds to the file while other ranks still read theirs.
        self._skips = read_skips(folder / CHECKPOINTS)
        self._num_bad, self._first_step, self._first_position = 0, 0, 0

    def good_step(self) -> None:
        """A step was sound: those before it are no longer in succession."""
        self._num_bad = 0

    def bad_step(self, step: int, position: int, said: str) -> None:
        """A step was left out. Every rank tells of it; collective over all ranks where the run is rolled back.

        Args:
            step: from 1.
            position: rows that all ranks had consumed before it.
            said: what was wrong with it, for people.

        Raises:
            StartAgain: it was the last one allowed; on every rank, after everything is written.
            DataError: the run was rolled back too often.
            OSError: the disk does not take it; on every rank.
        """
        if not self._num_bad:
            self._first_step, self._first_position = step, position
        self._num_bad += 1
        if self._num_bad < self._limits.bad_steps:
            return
        if len(self._skips) >= self._limits.max_rollbacks:
            raise too_many_rollbacks(said, self._skips, self._limits.max_rollbacks, self._folder)
        ranges, last_position = merged(self._skips), position + self._rows_per_step - 1
        skip = SkippedRows(row_at(self._first_position, ranges), row_at(last_position, ranges), from_step=step)
        # A save under way becomes whole before one is chosen. Asked of the loop, where the watchdog is told of it.
        megatron_loop.maybe_finalize_async_save(blocking=True)
        outcome: list[str | OSError | None] = [None]
        if self._is_reporter:
            try:
                outcome = [self._go_back(skip, self._why(said))]
            except OSError as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, src=dist.get_world_size() - 1)
        if isinstance(outcome[0], OSError):
            raise outcome[0]
        raise StartAgain(outcome[0])

    def _why(self, said: str) -> str:
        return said if self._num_bad == 1 else f"{self._num_bad} bad steps in succession, the last: {said}"

    def _go_back(self, skip: SkippedRows, why: str) -> str:
        """Choose the checkpoint, leave the rows out, write the event; what to say about it."""
        checkpoints = self._folder / CHECKPOINTS
        to_step = set_aside(checkpoints, self._first_step)
        add_skip(checkpoints, skip)
        rows = {"first_row": skip.first, "last_row": skip.last}
        events.append(self._folder, "rolled_back", to_step=to_step, from_step=skip.from_step, **rows, why=why)
        place = f"step {to_step}" if to_step else "the start: no checkpoint is older"
        return f"rolled back to {place}; rows {skip.first} to {skip.last} are left out. {why}"


def set_aside(checkpoints: Path, first_bad_step: int) -> int:
    """Rename the checkpoints of bad steps and have the tracker name the newest whole one before them.

    Args:
        checkpoints: root of the run's checkpoints; nothing is being written there.
        first_bad_step: from 1; a checkpoint of this step holds its rows as consumed.

    Returns:
        The step that the run goes on behind; 0 without a checkpoint, and then there is no tracker either.
    """
    saved = steps_on_disk(checkpoints)
    whole = [step for step in saved if (checkpoints / folder_name(step) / METADATA_FILE).is_file()]
    newest = max((step for step in whole if step < first_bad_step), default=0)
    if newest:
        write_at_once(checkpoints / TRACKER_FILE, str(newest))
    else:
        (checkpoints / TRACKER_FILE).unlink(missing_ok=True)
        if (checkpoints / LATEST).is_symlink():  # otherwise the next launch corrects it
            (checkpoints / LATEST).unlink()
    for step in saved:
        if step >= first_bad_step:
            (checkpoints / folder_name(step)).rename(free_name(checkpoints / (ROLLED_BACK + folder_name(step))))
    return newest


def too_many_rollbacks(said: str, skips: list[SkippedRows], allowed: int, folder: Path) -> DataError:
    """What a run says that was rolled back as often as it may be."""
    steps = f" (at steps {', '.join(str(skip.from_step) for skip in skips)})" if skips else ""
    return DataError(
        f"bad steps repeat, the last: {said}; rollbacks so far: {len(skips)}{steps}",
        f"at most {allowed} rollbacks, survival.max_rollbacks",
        f"look at the samples in {folder / BAD_STEPS_FILE}, or lower optimizer.lr if the losses before were rising; a "
        f"larger survival.max_rollbacks leaves more rows out. {how_to_go_on(folder)}",
    )


def how_to_go_on(folder: Path) -> str:
    """Names the checkpoint that a run which stopped can go on from."""
    tracker = folder / CHECKPOINTS / TRACKER_FILE
    if not tracker.exists():
        return "no checkpoint was saved before this step, start again"
    step = tracker.read_text().strip()
    return f"medx train {folder / RUN_FILE} --resume goes on from the checkpoint of step {step}"
