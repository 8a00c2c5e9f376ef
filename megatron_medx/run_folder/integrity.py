"""Checksums of a checkpoint's files, and the newest checkpoint that a run can go on from.

`integrity.json` is Megatron's own, in name and format (megatron/core/dist_checkpointing/validation.py): what is written
here Megatron verifies, and the other way round. Megatron makes it inside the save, though: with `--verify-integrity`
rank 0 hashes the whole checkpoint while all ranks wait in a barrier, a minute or more for 100 GB, and a mismatch at
loading ends the run, with nothing to fall back to. So it is made beside training (training/keeper.py starts
`python -m megatron_medx.run_folder.integrity FOLDER`, a process, for a thread would take the rank's interpreter lock),
and verified before ranks start. What fails is put aside, and the checkpoint before it is taken.

Nothing is deleted here. A save that was cut off is renamed out of the way, so that its files never end among those of
a later save of the same step; training/keeper.py removes it.
"""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from megatron_medx.config.checkpoint_folders import METADATA_FILE, TRACKER_FILE
from megatron_medx.errors import CheckpointError
from megatron_medx.run_folder import events
from megatron_medx.terminal import complain

INTEGRITY_FILE, ALGORITHM = "integrity.json", "sha256"
INDEX_FILE = ".metadata"
"""Which tensor lies in which file: a pickle, which is searched for names of files and never loaded."""

LATEST = "latest"
"""A link to the newest checkpoint whose checksums are written, or were verified at the launch."""
DAMAGED = "damaged-"
"""What the name of a checkpoint begins with that is not resumed from; a person may look at it, or delete it."""
DELETED = ".deleted-"
"""What the name of a folder begins with that nothing needs any more."""

CHUNK_BYTES = 4_000_000
MOST_THREADS = 8
"""Files read at once: one core hashes 1.7 GB/s (measured 2026-11-23), a few together keep a parallel disk busy."""
LARGE_BYTES = 10_000_000_000
"""From here on it is said what is read, and for how long it took: seconds to minutes."""

_DATA_FILE = re.compile(rb"__\d+_\d+\.distcp")
_STEP_FOLDER = re.compile(r"iter_(\d{7,})")

Say = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how far the reading of so many bytes is: label, bytes -> what is called with the bytes just read."""


@contextmanager
def _silent(label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    yield lambda num_bytes: None


def folder_name(step: int) -> str:
    """Megatron's name for the folder of a step."""
    return f"iter_{step:07d}"


def steps_on_disk(checkpoints: Path) -> list[int]:
    """Steps that have a folder, whole or not, in order."""
    named = (_STEP_FOLDER.fullmatch(path.name) for path in checkpoints.glob("iter_*"))
    return sorted(int(match[1]) for match in named if match)


def tracked_step(checkpoints: Path) -> int | None:
    """The step that Megatron's tracker names; None where there is none, or it says no number."""
    try:
        said = (checkpoints / TRACKER_FILE).read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    return int(said) if said.isdecimal() else None


def is_saved(checkpoints: Path, step: int) -> bool:
    """Whether Megatron has finished the save of a step: tensors first, then `metadata.json`, the tracker last."""
    whole = (checkpoints / folder_name(step) / METADATA_FILE).is_file()
    return whole and (tracked_step(checkpoints) or 0) >= step


def is_checked(folder: Path) -> bool:
    """Whether the checksums of a checkpoint are written."""
    return (folder / INTEGRITY_FILE).is_file()


def write_integrity(folder: Path) -> None:
    """Hash every file of a whole checkpoint and write `integrity.json` in one step.

    Args:
        folder: of a step. All files in it are hashed, as Megatron does it.

    Raises:
        CheckpointError: a file of the checkpoint is missing; checksums would vouch for it.
        OSError: a file cannot be read, or the sums cannot be written.
    """
    if missing := missing_files(folder):
        raise CheckpointError(
            f"{folder}: {'; '.join(missing)}",
            "a whole checkpoint, before its checksums are written",
            "look for what removes files there; the checkpoint before this one is the one to go back to",
        )
    kept_out = (INTEGRITY_FILE, _draft(folder / INTEGRITY_FILE).name)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in kept_out)
    with ThreadPoolExecutor(_num_threads(names)) as threads:
        sums = threads.map(lambda name: _hash(folder / name, lambda num_bytes: None), names)
        table = {"algorithm": ALGORITHM, "files": dict(zip(names, sums, strict=True))}
    write_at_once(folder / INTEGRITY_FILE, json.dumps(table, indent=2))


def missing_files(folder: Path) -> list[str]:
    """What a checkpoint lacks, as far as the names of its files tell: each a phrase, none where all are there."""
    wrong = []
    try:
        json.loads((folder / METADATA_FILE).read_text())
    except (OSError, ValueError) as error:
        wrong.append(f"{METADATA_FILE} cannot be read ({type(error).__name__})")
    try:
        index = (folder / INDEX_FILE).read_bytes()
    except OSError as error:
        return [*wrong, f"{INDEX_FILE} cannot be read ({type(error).__name__})"]
    names = sorted({name.decode() for name in _DATA_FILE.findall(index)})
    if not names:
        wrong.append(f"{INDEX_FILE} names no file")
    sizes = {name: (folder / name).stat().st_size if (folder / name).is_file() else None for name in names}
    return wrong + [f"{name} is {'missing' if size is None else 'empty'}" for name, size in sizes.items() if not size]


def problems(folder: Path, progress: Progress = _silent) -> list[str]:
    """What is wrong with a checkpoint: files that are missing, or whose bytes are not those of `integrity.json`.

    Args:
        folder: of a step. Without `integrity.json` only the names of its files are looked at.
        progress: shows how far the reading is.

    Returns:
        A phrase a file, beginning with its name; none for a sound checkpoint.
    """
    wrong = missing_files(folder)
    if wrong or not is_checked(folder):
        return wrong
    try:
        table = json.loads((folder / INTEGRITY_FILE).read_text())
        algorithm, expected = table.get("algorithm", ALGORITHM), dict(table["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{INTEGRITY_FILE} cannot be read ({type(error).__name__})"]
    if algorithm != ALGORITHM:
        return [f"{INTEGRITY_FILE} is of {algorithm}, not of {ALGORITHM}"]
    with progress(f"verify {folder.name}", num_bytes(folder)) as advance:
        with ThreadPoolExecutor(_num_threads(expected)) as threads:
            found = threads.map(lambda name: _difference(folder / name, expected[name], advance), expected)
            return [phrase for phrase in found if phrase]


def newest_sound(checkpoints: Path, say: Say, *, checksums: bool = True, progress: Progress = _silent) -> int | None:
    """The newest checkpoint that is whole and whose files match their checksums.

    Newer ones that are damaged are renamed and told of, with event `checkpoint_damaged`; saves that were cut off are
    put aside. Megatron's tracker and the link `latest` are corrected where they name another checkpoint.

    Args:
        checkpoints: of a run.
        say: takes lines for people.
        checksums: verify them; otherwise only the names of files are looked at.
        progress: shows how far the reading is.

    Returns:
        Its step, or None where the run has saved none yet.

    Raises:
        CheckpointError: the run has saved some, and none is sound.
    """
    tracked, found, num_damaged = tracked_step(checkpoints), None, 0
    for step in reversed(steps_on_disk(checkpoints)):
        folder = checkpoints / folder_name(step)
        if not (folder / METADATA_FILE).exists() and not is_checked(folder) and step != tracked:
            put_aside(folder)
            say(f"{folder} was not finished when the run stopped; it is put aside")
        elif found is None:
            found = step if _is_sound(folder, say, checksums, progress) else None
            num_damaged += found is None
    if found is None:
        _refuse_to_lose_a_run(checkpoints)
        return None
    if num_damaged:
        say(f"WARNING: resuming from step {found}; what was trained behind it is trained again")
    if tracked != found:
        write_at_once(checkpoints / TRACKER_FILE, str(found))
    link_latest(checkpoints, found)
    return found


def _is_sound(folder: Path, say: Say, checksums: bool, progress: Progress) -> bool:
    """Whether a checkpoint can be resumed from; one that cannot is renamed, and told of loudly."""
    start_s, size = time.monotonic(), num_bytes(folder)
    is_large = checksums and is_checked(folder) and size > LARGE_BYTES
    if is_large:
        say(f"verifying the checksums of {folder}, {size / 1e9:.1f} GB")
    wrong = problems(folder, progress) if checksums else missing_files(folder)
    if wrong:
        step, moved = int(_STEP_FOLDER.fullmatch(folder.name)[1]), free_name(folder.with_name(DAMAGED + folder.name))
        folder.rename(moved)
        events.append(folder.parent.parent, "checkpoint_damaged", step=step, problems=wrong, moved_to=str(moved))
        say(f"WARNING: checkpoint {folder} is damaged:")
        for phrase in wrong:
            say(f"    {phrase}")
        say(f"    it is kept as {moved}")
        return False
    if is_large:
        say(f"all files match, {time.monotonic() - start_s:.0f} s")
    elif checksums and not is_checked(folder):
        say(f"{folder} has no {INTEGRITY_FILE}, so only the names of its files were looked at: all are there")
    return True


def _refuse_to_lose_a_run(checkpoints: Path) -> None:
    """A run that has saved before must not begin anew in silence."""
    damaged = sorted(path.name for path in checkpoints.glob(f"{DAMAGED}*"))
    if damaged or (checkpoints / TRACKER_FILE).exists():
        said = f"; damaged: {', '.join(damaged)}" if damaged else f", although {TRACKER_FILE} is there"
        raise CheckpointError(
            f"{checkpoints} has no sound checkpoint{said}",
            "one that is whole and whose files match their checksums",
            "bring one back from a copy, as iter_<step>, and resume; or start a new run in another run.folder",
        )


def put_aside(folder: Path) -> Path:
    """Rename a folder that nothing needs any more, so that nobody sees it; its new place."""
    hidden = free_name(folder.with_name(DELETED + folder.name))
    folder.rename(hidden)
    return hidden


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that is not there: what was put aside before stays."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def link_latest(checkpoints: Path, step: int) -> None:
    """Point `latest` to a checkpoint, in one step; a folder of that name, from a copy of the run, is put aside."""
    link, draft = checkpoints / LATEST, _draft(checkpoints / LATEST)
    if link.is_dir() and not link.is_symlink():
        put_aside(link)
    draft.unlink(missing_ok=True)
    draft.symlink_to(folder_name(step), target_is_directory=True)
    draft.replace(link)


def write_at_once(path: Path, text: str) -> None:
    """Replace a file by a text that is on the disk before it has the name."""
    draft = _draft(path)
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def num_bytes(folder: Path) -> int:
    """Size of all files of a checkpoint."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _num_threads(names: Sequence[str] | dict[str, str]) -> int:
    return max(1, min(MOST_THREADS, len(names), os.cpu_count() or 1))


def _difference(path: Path, expected: str, advance: Callable[[int], None]) -> str:
    """A phrase on a file whose bytes are not those of its checksum; empty for one whose are."""
    try:
        found = _hash(path, advance)
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return "" if found == expected else f"{path.name} has {ALGORITHM} {found[:16]}..., not {str(expected)[:16]}..."


def _hash(path: Path, advance: Callable[[int], None]) -> str:
    digest = hashlib.new(ALGORITHM)
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m megatron_medx.run_folder.integrity FOLDER`: write its checksums; 1 where that cannot be done."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    try:
        write_integrity(Path(folder))
    except (OSError, CheckpointError) as error:
        complain(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
