"""Hugging Face directories of a running job's checkpoints, made beside it and kept by validation loss.

The last rank, which also reports, starts `medx convert to-hf` for a checkpoint that Megatron has finished: a process
of low priority with one thread and without a GPU, one at a time. Training never waits for it; the end of the run does.
What a killed job left undone is done when it is resumed: a checkpoint that is due and not in the index, converted anew
where a partial folder lies. Checkpoints are only read.

    exports/index.json    a list, by step: `step`, `folder`, `validation_loss` (null: not validated, or not finite),
                          `kept` (false: others are better, so it was deleted or
                          never made)
    exports/best          a link to the kept export of the lowest validation loss; absent without validation. It is that
                          of data.validation_path, or where there is none of the first of data.validation_sets
    logs/export_<step>.log
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from megatron_medx.config.checkpoint_folders import CHECKPOINTS
from megatron_medx.config.exports import BEST, EXPORTS, INDEX_FILE, exported_step, is_export_due
from megatron_medx.config.run import RunConfig
from megatron_medx.config.validation import MAIN_SET, VALIDATION_FILE, ranking_set
from megatron_medx.run_folder.integrity import DELETED, folder_name, is_saved, tracked_step
from megatron_medx.run_folder.names import LOGS
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.step_lines import read_metrics

TRACKER_PATIENCE_S = 60.0
"""Longest wait, after training, for a checkpoint to be whole: another host's write to a shared disk shows late."""

POLL_S = 0.2
"""Between looks at a conversion that the end of the run waits for."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

LATER_ON_THE_DISK = ("ionice", "--ignore", "--class", "2", "--classdata", "7")
"""Words before a command that give it the last place in the queue of the disk, short of "only when idle"."""


class Exporter:
    """Starts, follows and ranks the exports of a run; of use on the reporting rank alone.

    Args:
        config: the run, with `checkpoint.export_every_steps`.
        folder: run folder.
        monitor: where people look.
    """

    def __init__(self, config: RunConfig, folder: Path, monitor: StepMonitor):
        self._config, self._monitor = config, monitor
        self._checkpoints, self._exports = folder / CHECKPOINTS, folder / EXPORTS
        self._logs, self._losses = folder / LOGS, folder / VALIDATION_FILE
        self._saving: list[int] = []
        self._waiting: list[int] = []
        self._process: subprocess.Popen | None = None
        self._step, self._started_s = 0, 0.0
        self._is_over = False  # training: conversions need not stand back any more
        self._index: dict[int, dict] = {}

    def catch_up(self) -> None:
        """Take over what a former process of this run exported, and queue what it owed."""
        self._exports.mkdir(exist_ok=True)
        for folder in self._exports.glob(f"{DELETED}*"):
            shutil.rmtree(folder)
        newest = (
            tracked_step(self._checkpoints) or 0
        )  # what was exported behind it belongs to steps that are trained again
        self._index = {step: entry for step, entry in read_index(self._exports).items() if step <= newest}
        for step in sorted(filter(None, map(exported_step, self._checkpoints.glob("iter_*")))):
            if is_export_due(self._config, step) and is_saved(self._checkpoints, step) and step not in self._index:
                if (self._exports / folder_name(step)).exists():
                    self._enter(step)  # a former process of the run had no time to
                else:
                    self._waiting.append(step)
        self._rank()
        self.advance()

    def saved(self, step: int) -> None:
        """A checkpoint was handed to Megatron; it is exported once it is whole, if it is due."""
        self._is_over = step == self._config.training.steps
        if is_export_due(self._config, step):
            self._saving.append(step)
        self.advance()

    def advance(self) -> None:
        """See what has ended and start what can start; without anything to do it asks for nothing.

        A full disk, or a process that cannot be started, is no reason to stop training.
        """
        try:
            self._advance()
        except OSError as error:
            self._say_failed(f"an export failed: {error}. ")

    def _advance(self) -> None:
        for step in [step for step in self._saving if is_saved(self._checkpoints, step)]:
            self._saving.remove(step)
            self._waiting.append(step)
        if self._process is not None and self._process.poll() is not None:
            self._conclude(self._process.returncode)
        while self._process is None and self._waiting:
            self._start_unless_beaten(self._waiting.pop())  # the newest first: it is mostly the best

    def needs(self, step: int) -> bool:
        """Whether the checkpoint of a step is still to be exported, or being so."""
        return step in self._saving or step in self._waiting or (self._process is not None and step == self._step)

    def finish(self) -> Iterator[None]:
        """Go on until nothing is under way; yields while there is, a few times a second.

        A checkpoint that does not become whole is waited for for TRACKER_PATIENCE_S.
        """
        self._is_over = True
        self.advance()
        if steps := [self._step] * (self._process is not None) + self._waiting + self._saving:
            self._monitor.announce(f"training is done; waiting for the export of step {', '.join(map(str, steps))}")
        deadline_s = time.monotonic() + TRACKER_PATIENCE_S
        while self._process or self._waiting or self._saving:
            if self._saving and time.monotonic() > deadline_s:
                named = ", ".join(str(self._checkpoints / folder_name(step)) for step in self._saving)
                self._monitor.announce(f"not exported, for it is not complete: {named}")
                self._saving.clear()
            yield
            time.sleep(POLL_S)
            self.advance()
        self._rank()  # the last step is validated after it was saved

    def stop(self) -> None:
        """End what is under way, when the run ends with an error; a resume does it again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start_unless_beaten(self, step: int) -> None:
        """Convert a checkpoint, unless better ones already hold all places: then only the index tells of it."""
        entry = {"step": step, "folder": folder_name(step), "validation_loss": None, "kept": True}
        if step in self._losers([*self._index.values(), entry]):
            self._monitor.announce(f"step {step}: not exported, for the exports that stay are better")
            self._enter(step)
        else:
            self._start(step)

    def _start(self, step: int) -> None:
        words = conversion_words(self._checkpoints / folder_name(step), self._exports / folder_name(step))
        later = LATER_ON_THE_DISK if shutil.which(LATER_ON_THE_DISK[0]) else ()
        command = [*later, sys.executable, "-m", "megatron_medx.cli", *words]
        with open(self._log(step), "w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment()
            )
        if not self._is_over:
            lower_priority(self._process.pid)
        self._step, self._started_s = step, time.monotonic()

    def _conclude(self, code: int) -> None:
        step, self._process = self._step, None
        if code == 0:
            self._enter(step)
            took_s = time.monotonic() - self._started_s
            self._monitor.announce(f"step {step}: exported to {self._exports / folder_name(step)} in {took_s:.0f} s")
            return
        self._say_failed(f"the export of step {step} failed with code {code}; see {self._log(step)}. ")

    def _say_failed(self, what: str) -> None:
        said = what + "Training goes on; it is tried again when the run is resumed"
        sys.stderr.write(said + "\n")  # the rank's log
        self._monitor.announce(said)

    def _enter(self, step: int) -> None:
        self._index[step] = {"step": step, "folder": folder_name(step), "validation_loss": None, "kept": True}
        self._rank()

    def _rank(self) -> None:
        """Bring index, link and folders up to date, in this order; an export that loses its place goes last."""
        lost = self._losers(self._index.values())
        for step in lost:
            self._index[step]["kept"] = False
        write_index(self._exports, self._index)
        link_best(self._exports, self._index.values())
        for step in lost:
            delete(self._exports / folder_name(step))

    def _losers(self, entries: Collection[dict]) -> list[int]:
        """Those of `losers`, after the validation losses known by now have been entered."""
        of_set = ranking_set(self._config)
        lines = [line for line in read_metrics(self._losses) if line.get("set", MAIN_SET) == of_set]
        validations = {line["step"]: line["loss"] for line in lines}
        for entry in entries:
            entry["validation_loss"] = validations.get(entry["step"], entry["validation_loss"])
        validated = bool(self._config.training.validate_every_steps)
        unknown = {entry["step"] for entry in entries if validated and entry["step"] not in validations}
        return losers(entries, self._config.checkpoint.keep_exports, validated, unknown)

    def _log(self, step: int) -> Path:
        return self._logs / f"export_{step}.log"


class Finisher(Protocol):
    """What goes on beside training and is waited for at its end."""

    def finish(self) -> Iterator[None]:
        """Go on until nothing is under way; yields while there is, a few times a second."""


def finish_together(finishers: Sequence[Finisher], still_ending: Callable[[], None]) -> None:
    """Wait on all ranks until the reporting one has finished all. Collective over all ranks.

    Ranks that left earlier would take the store and, under srun, the whole job step with them.

    Args:
        finishers: of the last rank, which reports; none on the others.
        still_ending: called on each rank a few times a second while none stands still.
    """
    under_way = torch.ones((), dtype=torch.int32, device=torch.cuda.current_device())
    is_reporter = dist.get_rank() == dist.get_world_size() - 1
    steps = itertools.zip_longest(*(finisher.finish() for finisher in finishers))
    while under_way.item():
        if is_reporter:
            under_way.fill_(next(steps, "done") != "done")
        dist.broadcast(under_way, src=dist.get_world_size() - 1)
        still_ending()


def losers(entries: Iterable[dict], keep: int, validated: bool, unknown: set[int]) -> list[int]:
    """Steps whose exports have to go: all kept ones but the best `keep`.

    Args:
        entries: of the index.
        keep: 0 keeps all.
        validated: ranked by validation loss, one that is not finite being the worst; else the newest are best.
        unknown: steps whose loss may still come: they stay until then, and take nobody's place.
    """
    held = [entry for entry in entries if entry["kept"] and entry["step"] not in unknown]

    def rank(entry: dict) -> tuple:
        loss = entry["validation_loss"] if validated else None
        return loss is None, loss or 0.0, -entry["step"]

    return [entry["step"] for entry in sorted(held, key=rank)[keep:]] if keep else []


def read_index(exports: Path) -> dict[int, dict]:
    """Step -> entry of exports/index.json whose folder is as the entry says; empty where there is none."""
    path = exports / INDEX_FILE
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {entry["step"]: entry for entry in entries if not entry["kept"] or (exports / entry["folder"]).is_dir()}


def write_index(exports: Path, index: dict[int, dict]) -> None:
    """Replace exports/index.json at once."""
    draft = exports / f"{INDEX_FILE}.tmp"
    draft.write_text(json.dumps([index[step] for step in sorted(index)], indent=1) + "\n", encoding="utf-8")
    draft.replace(exports / INDEX_FILE)


def link_best(exports: Path, entries: Iterable[dict]) -> None:
    """Point exports/best to the kept export of the lowest validation loss; without one there is no link."""
    if (exports / BEST).is_dir() and not (exports / BEST).is_symlink():  # a run folder copied with its links followed
        delete(exports / BEST)
    ranked = [entry for entry in entries if entry["kept"] and entry["validation_loss"] is not None]
    if not ranked:
        (exports / BEST).unlink(missing_ok=True)
        return
    best = min(ranked, key=lambda entry: (entry["validation_loss"], -entry["step"]))
    draft = exports / f"{BEST}.tmp"
    draft.unlink(missing_ok=True)
    draft.symlink_to(best["folder"], target_is_directory=True)
    draft.replace(exports / BEST)


def delete(folder: Path) -> None:
    """Take an export out of sight in one step, then remove its files."""
    hidden = folder.with_name(DELETED + folder.name)
    with suppress(FileNotFoundError):
        folder.rename(hidden)
        shutil.rmtree(hidden)


def conversion_words(checkpoint: Path, out: Path) -> list[str]:
    """The words after `medx`; an export of the same step, from before the run went back behind it, is replaced."""
    return ["convert", "to-hf", str(checkpoint), str(out), *(["--overwrite"] if out.exists() else [])]


def lower_priority(pid: int) -> None:
    """Let a process run where others leave a core idle, as far as the system allows that.

    A rank that wakes up takes its core back at once from an idle-class process; from one that is only `nice` it may
    wait for milliseconds, and ranks wake up at every collective.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)
    with suppress(OSError):
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def environment() -> dict[str, str]:
    """Of the converting process: one thread, no GPU, and nothing that would make it take itself for a rank."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in ranks and not name.startswith("SLURM_")}
    return kept | dict.fromkeys(THREADS, "1") | {"CUDA_VISIBLE_DEVICES": ""}
