"""Write a directory so that its final name never holds half of it, and attempts can go on with one another's work.

Everything goes to `<name>.partial` (its layout: `finished_units.py`), is forced to disk, and is renamed in one step.
What becomes of it when that is not reached:

- bad input (a CheckpointError) or a defect of ours leaves nothing;
- a full disk, Ctrl-C, SIGTERM and a lost worker keep it if a file in it is finished, and say so;
- a kill or a power cut leaves it as it is.

The next attempt goes on with the finished files when it makes the same from the same, and else starts afresh.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.checkpoint.writing.finished_units import (
    CONTENT,
    FINISHED,
    FinishedUnits,
    InterruptedConversion,
    clear,
    fingerprint_changes,
    locked,
    remove,
    sync_path,
    write_fingerprint,
)
from megatron_medx.errors import CheckpointError

logger = logging.getLogger(__name__)

PARTIAL_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"

# A directory is only ever replaced when it looks like something we write.
_RECOGNIZED_BY = ("config.json", "latest_checkpointed_iteration.txt")


@dataclass(frozen=True, slots=True)
class UnfinishedFolder:
    """An output on its way."""

    folder: Path
    """To be filled."""
    finished: FinishedUnits
    """Which of its files are whole."""


@contextmanager
def new_folder(
    out: Path,
    *,
    source: Path,
    overwrite: bool,
    needed_bytes: int,
    fingerprint: Mapping[str, object] | None = None,
) -> Iterator[UnfinishedFolder]:
    """Give a folder to fill; make it `out` when the block ends without an error.

    Args:
        out: final name.
        source: what is being converted; it must not lie inside `out`, which would destroy it.
        overwrite: True replaces an existing `out`, once the new one is complete.
        needed_bytes: bytes that will be written, those of finished files included.
        fingerprint: parts of what decides every byte of the output, as JSON; None: no attempt can go on with another's.
    Raises:
        CheckpointError: `out` exists, holds the source, is being written by another process or cannot be created, or
            the disk is too small.
        InterruptedConversion: the disk filled up or failed; finished files are kept.
    """
    out = out.absolute()
    partial, replaced = (out.with_name(out.name + suffix) for suffix in (PARTIAL_SUFFIX, REPLACED_SUFFIX))
    check_target(out, source.absolute(), overwrite)
    with ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(partial))
            if replaced.exists() and not out.exists():  # an attempt was killed between its two renames
                replaced.rename(out)
            unfinished = _open(partial, fingerprint)
        except OSError as error:
            raise CheckpointError(
                f"{out} cannot be created: {error.strerror or error}",
                "a folder that can be written",
                "choose another output folder",
            ) from None
        try:
            check_free_space(out.parent, needed_bytes - _size_bytes(unfinished.folder))
        except CheckpointError:
            _leave(partial, unfinished, keep=True)
            raise
        try:
            yield unfinished
            _sync_tree(unfinished.folder)
            _replace(unfinished.folder, out)
            remove(partial)
        except OSError as error:
            _leave(partial, unfinished, keep=True)
            raise InterruptedConversion(
                f"{out} cannot be written: {error.strerror or error}",
                f"{needed_bytes / 1e9:.3f} GB in {out.parent}, {shutil.disk_usage(out.parent).free / 1e9:.3f} GB free",
                "free some space, then run the same command again: it goes on with the files that are finished",
            ) from None
        except BaseException as error:
            _leave(partial, unfinished, keep=isinstance(error, InterruptedConversion | KeyboardInterrupt | SystemExit))
            raise


def _open(partial: Path, fingerprint: Mapping[str, object] | None) -> UnfinishedFolder:
    """Take over what an earlier attempt left, or clear it away."""
    unfinished = UnfinishedFolder(partial / CONTENT, FinishedUnits(partial))
    changes = None if fingerprint is None else fingerprint_changes(partial, fingerprint)
    if changes == []:
        num_finished = len(unfinished.finished.facts())
        logger.warning("%s: an earlier attempt finished %d files; this one goes on", partial, num_finished)
        return unfinished
    if changes:
        logger.warning("%s: left by another conversion (other %s); starting afresh", partial, ", ".join(changes))
    clear(partial)
    for folder in (CONTENT, FINISHED):
        (partial / folder).mkdir()
    if fingerprint is not None:
        write_fingerprint(partial, fingerprint)
    return unfinished


def _leave(partial: Path, unfinished: UnfinishedFolder, *, keep: bool) -> None:
    """Remove what was begun, unless it is to be kept and a file of it is finished."""
    num_finished = len(unfinished.finished.facts()) if keep else 0
    if num_finished:
        logger.warning("%s keeps %d finished files; run the same command again to go on", partial, num_finished)
    else:
        remove(partial)


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Stop before the start when the disk cannot hold what will be written.

    Raises:
        CheckpointError: with both numbers.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise CheckpointError(
            f"{free / 1e9:.3f} GB free in {folder}",
            f"{needed_bytes / 1e9:.3f} GB for the output",
            "free some space or choose another disk",
        )


def check_target(out: Path, source: Path, overwrite: bool) -> None:
    """Stop when an output must not get its name.

    Raises:
        CheckpointError: `out` exists and may not be replaced, or holds the source.
    """
    if source.resolve().is_relative_to(out.resolve()):
        raise CheckpointError(
            f"the output {out} is, or contains, the source {source}",
            "an output folder of its own",
            "choose another output folder",
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{out} exists", "a new output folder", "choose another name, or add --overwrite")
    if not any((out / name).is_file() for name in _RECOGNIZED_BY):
        raise CheckpointError(
            f"{out} exists and is neither a Hugging Face directory nor a Megatron checkpoint",
            "an output folder that --overwrite may delete",
            "choose another name, or remove it yourself",
        )


def _replace(content: Path, out: Path) -> None:
    """Rename the finished directory to its name; a directory that had the name goes only after that."""
    replaced = out.with_name(out.name + REPLACED_SUFFIX)
    if out.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
    try:
        content.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise
    sync_path(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _size_bytes(folder: Path) -> int:
    """Bytes of the files that already lie there: their space is taken, or is used again."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _sync_tree(folder: Path) -> None:
    """Force every file and folder below to disk. Data that a writer already synced costs nothing again."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync_path(Path(parent) / name)
        sync_path(Path(parent))
