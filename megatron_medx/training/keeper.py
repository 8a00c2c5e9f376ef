"""Care for a running job's checkpoints: checksums, the link `latest`, and which of them stay.

The last rank, which also reports, starts a process of low priority for a checkpoint that Megatron has finished; it
writes `integrity.json` (run_folder/integrity.py). Then the checkpoint counts as checked: `latest` points to it, and
older ones go, which is another process, one at a time. Training never waits; the end of the run does, for checksums.
What a killed job left undone is done when the run goes on.

Of the checked ones the newest `checkpoint.keep_last` stay, multiples of `checkpoint.keep_every_steps`, what is still
to be exported, and what Megatron's tracker names. One that is damaged, or not checked yet, is never deleted.
"""

import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.config.checkpoint_folders import CHECKPOINTS
from megatron_medx.config.run import RunConfig
from megatron_medx.run_folder import events
from megatron_medx.run_folder.integrity import (
    DELETED,
    folder_name,
    is_checked,
    is_saved,
    link_latest,
    num_bytes,
    put_aside,
    steps_on_disk,
    tracked_step,
)
from megatron_medx.training.exports import POLL_S, TRACKER_PATIENCE_S, Exporter, lower_priority
from megatron_medx.training.interruption import StartAgain
from megatron_medx.training.monitor import StepMonitor


@dataclass(frozen=True, slots=True)
class Task:
    """Something that a process does beside training: checksums of a step, or the removal of a folder."""

    what: str
    command: tuple[str, ...]
    checks_step: int | None = None


class CheckpointKeeper:
    """Follows the checkpoints of a run; of use on the reporting rank alone.

    Args:
        config: the run; section `checkpoint` says what stays, and whether checksums are written.
        folder: run folder.
        monitor: where people look, and how long the last save held training up.
        exporter: reads checkpoints, which stay meanwhile; None in a run without exports.
    """

    def __init__(self, config: RunConfig, folder: Path, monitor: StepMonitor, exporter: Exporter | None):
        self._config, self._folder, self._monitor, self._exporter = config, folder, monitor, exporter
        self._checkpoints = folder / CHECKPOINTS
        self._saving: dict[int, float] = {}
        self._save_s: dict[int, float] = {}
        self._waiting: list[Task] = []
        self._process: subprocess.Popen | None = None
        self._task: Task | None = None
        self._is_over = False

    def catch_up(self) -> None:
        """Queue what a former process of this run had no time for: checksums, and folders to be removed."""
        for step in steps_on_disk(self._checkpoints):
            folder = self._checkpoints / folder_name(step)
            if self._config.checkpoint.checksums and is_saved(self._checkpoints, step) and not is_checked(folder):
                self._waiting.append(_checksums(folder, step))
        self._waiting += [_removal(folder) for folder in sorted(self._checkpoints.glob(f"{DELETED}*"))]
        self.advance()

    def saved(self, step: int) -> None:
        """A checkpoint was handed to Megatron, which may finish it later."""
        self._is_over = step == self._config.training.steps
        self._saving[step] = time.monotonic() - self._monitor.save_time_s
        self.advance()

    def advance(self) -> None:
        """See what has ended and start what can start; a disk that fails is complained of and stops nothing."""
        try:
            self._advance()
        except OSError as error:
            self._monitor.announce(f"care for checkpoints failed: {error}. Training goes on")

    def _advance(self) -> None:
        for step in [step for step in self._saving if is_saved(self._checkpoints, step)]:
            self._save_s[step] = time.monotonic() - self._saving.pop(step)
            if self._config.checkpoint.checksums:
                self._waiting.append(_checksums(self._step_folder(step), step))
                self._waiting.sort(key=lambda task: task.checks_step is None)  # removals can wait
            else:
                self._conclude_save(step)
        if self._process is not None and (code := self._process.poll()) is not None:
            task, self._process, self._task = self._task, None, None
            self._conclude(task, code)
        if self._process is None and self._waiting:
            self._start(self._waiting.pop(0))

    def finish(self) -> Iterator[None]:
        """Go on until nothing is under way; yields while there is, a few times a second.

        A checkpoint that does not become whole is waited for for TRACKER_PATIENCE_S.
        """
        self._is_over = True
        self.advance()
        deadline_s = time.monotonic() + TRACKER_PATIENCE_S
        while self._process or self._waiting or self._saving:
            if self._saving and time.monotonic() > deadline_s:
                self._monitor.announce(f"not complete: the checkpoint of step {', '.join(map(str, self._saving))}")
                self._saving.clear()
            yield
            time.sleep(POLL_S)
            self.advance()

    def stop(self) -> None:
        """End what is under way, when the run ends; the next launch does it again. A save that fails is told of."""
        unfinished = {step for step in self._saving if not is_saved(self._checkpoints, step)} | {
            self._monitor.saving_step
        }
        error = sys.exc_info()[1]  # what the run ends with
        why = "the run ended before it was whole" if error is None else f"{type(error).__name__}: {error}"
        if isinstance(error, StartAgain):
            unfinished.clear()  # a rollback waits for saves under way, and sets those of bad steps aside
        for step in sorted(unfinished - {None}):
            events.append(self._folder, "save_failed", step=step, why=why.splitlines()[0])
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _step_folder(self, step: int) -> Path:
        return self._checkpoints / folder_name(step)

    def _start(self, task: Task) -> None:
        self._process = subprocess.Popen(task.command, stdin=subprocess.DEVNULL)
        if not self._is_over:
            lower_priority(self._process.pid)
        self._task = task

    def _conclude(self, task: Task, code: int) -> None:
        if code == 0 and task.checks_step is not None:
            self._conclude_save(task.checks_step)
        elif code:
            self._monitor.announce(
                f"{task.what} failed with code {code}; see the log of the last rank. Training goes on"
            )
            if task.checks_step is not None:
                events.append(self._folder, "save_failed", step=task.checks_step, why="its checksums were not written")

    def _conclude_save(self, step: int) -> None:
        """A checkpoint can be relied on: say so, point to it, and let older ones go."""
        folder, save_s = self._step_folder(step), self._save_s.pop(step, None)
        told_s = None if save_s is None else round(save_s, 3)  # unknown where a former process saved it
        events.append(self._folder, "saved", step=step, save_s=told_s, bytes=num_bytes(folder))
        checked = self._checked_steps()
        link_latest(self._checkpoints, checked[-1])
        needed = {tracked_step(self._checkpoints)}
        if self._exporter is not None:
            needed |= {each for each in checked if self._exporter.needs(each)}
        section = self._config.checkpoint
        for old in superfluous(checked, section.keep_last, section.keep_every_steps, needed):
            self._waiting.append(_removal(put_aside(self._step_folder(old))))
            events.append(self._folder, "checkpoint_deleted", step=old)

    def _checked_steps(self) -> list[int]:
        """Steps whose checkpoints can be relied on, in order: with checksums, or whole where none are wanted."""
        steps = [step for step in steps_on_disk(self._checkpoints) if is_saved(self._checkpoints, step)]
        if not self._config.checkpoint.checksums:
            return steps
        return [step for step in steps if is_checked(self._step_folder(step))]


def superfluous(checked: Collection[int], keep_last: int, keep_every_steps: int, needed: Collection[int]) -> list[int]:
    """Steps whose checkpoints may be deleted.

    Args:
        checked: steps of checkpoints that can be relied on.
        keep_last: so many of the newest stay; 0 keeps all.
        keep_every_steps: multiples of it stay; 0 keeps none for that.
        needed: steps that stay for another reason.
    """
    older = sorted(checked)[:-keep_last] if keep_last else []
    return [step for step in older if step not in needed and not (keep_every_steps and step % keep_every_steps == 0)]


def _checksums(folder: Path, step: int) -> Task:
    module = "megatron_medx.run_folder.integrity"
    return Task(f"writing the checksums of {folder}", (sys.executable, "-m", module, str(folder)), step)


def _removal(hidden: Path) -> Task:
    return Task(f"removing {hidden}", ("rm", "-rf", "--", str(hidden)))
