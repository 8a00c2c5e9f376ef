"""Write a directory so that its final name never holds half of it.

Everything goes to `<name>.partial`, is forced to disk, and is renamed in one step. A failure removes the partial
directory; after a kill it stays under that name, and the next attempt starts it afresh.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_medx.errors import CheckpointError

PARTIAL_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"

# A directory is only ever replaced when it looks like something we write.
_RECOGNIZED_BY = ("config.json", "latest_checkpointed_iteration.txt")


@contextmanager
def new_folder(out: Path, *, source: Path, overwrite: bool, needed_bytes: int) -> Iterator[Path]:
    """Give a partial directory to fill; make it `out` when the block ends without an error.

    Args:
        out: final name.
        source: what is being converted; it must not lie inside `out`, which would destroy it.
        overwrite: True replaces an existing `out`, once the new one is complete.
        needed_bytes: bytes that will be written.
    Raises:
        CheckpointError: `out` exists, holds the source or cannot be created, or the disk is too small.
    """
    out = out.absolute()
    _check_target(out, source.absolute(), overwrite)
    partial = out.with_name(out.name + PARTIAL_SUFFIX)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        check_free_space(out.parent, needed_bytes)
        partial.mkdir()
    except OSError as error:
        raise CheckpointError(
            f"{out} cannot be created: {error.strerror or error}",
            "a folder that can be written",
            "choose another output folder",
        ) from None
    try:
        yield partial
        _sync_tree(partial)
        _replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


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


def _check_target(out: Path, source: Path, overwrite: bool) -> None:
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


def _replace(partial: Path, out: Path) -> None:
    """Rename the finished directory to its name; a directory that had the name goes only after that."""
    replaced = out.with_name(out.name + REPLACED_SUFFIX)
    if out.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
    try:
        partial.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise
    sync_path(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    """Force every file and folder below to disk. Data that a writer already synced costs nothing again."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync_path(Path(parent) / name)
        sync_path(Path(parent))


def sync_path(path: Path) -> None:
    """fsync one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
