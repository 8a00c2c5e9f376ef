"""The files of a run folder as they lie there while others write them: lines, checkpoints, exports, times.

Whatever is absent, cut off or vanishes between two looks is left out; nothing here waits, locks or writes.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_medx.config.checkpoint_folders import METADATA_FILE, TRACKER_FILE
from megatron_medx.config.exports import BEST, INDEX_FILE, exported_step
from megatron_medx.run_folder.integrity import INTEGRITY_FILE, tracked_step
from megatron_medx.run_folder.names import ERROR_FILE, LOGS

TAIL_BYTES = 2**20
"""Of a long file of lines that is read from the end: some 3,000 steps of metrics.jsonl."""

_LAST_WORDS_BYTES = 2**16
_RAISED = re.compile(rb"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*$", re.MULTILINE)


def tail_lines(path: Path, num_bytes: int = TAIL_BYTES) -> list[dict]:
    """The JSON objects in the last `num_bytes` of a file of lines; those that were cut off are left out."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
        texts = file.read().split(b"\n")
    return [line for line in map(_object, texts) if line is not None]


def count_lines(path: Path) -> int:
    """Lines that were finished; 0 without the file."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(TAIL_BYTES), b""))


def _object(text: bytes) -> dict | None:
    try:
        line = json.loads(text)
    except ValueError:  # also of bytes that are no text
        return None
    return line if isinstance(line, dict) else None


def written_s(path: Path) -> float | None:
    """When a file was last written, in seconds since 1970; None where there is none."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def error_text(folder: Path) -> str | None:
    """What the last launch stopped with, as training/worker.py reported it; a new launch deletes the file."""
    path = folder / LOGS / ERROR_FILE
    return path.read_text(errors="replace").strip() if path.is_file() else None


def checkpoint_entries(checkpoints: Path, num_last: int) -> tuple[int, list[dict]]:
    """How many iteration folders there are, and the last ones, newest first.

    Keys of an entry: `step`; `written_s`, since 1970; `bytes`, of all its files; `whole`; `missing`, what it lacks to
    be whole: metadata.json, which Megatron writes last, or the tracker, which names a step only once it is saved;
    `checksums`, whether it has those that a resume verifies.
    """
    tracked = tracked_step(checkpoints) or 0
    found = sorted((step, path) for path in checkpoints.glob("iter_*") if (step := exported_step(path)) is not None)
    entries = []
    for step, path in reversed(found[-num_last:]):
        files = list(_files(path))
        missing = [METADATA_FILE] * (not (path / METADATA_FILE).is_file()) + [TRACKER_FILE] * (step > tracked)
        entries.append(
            {
                "step": step,
                "written_s": max((time_s for time_s, _ in files), default=written_s(path)),
                "bytes": sum(num_bytes for _, num_bytes in files),
                "whole": not missing,
                "missing": missing,
                "checksums": (path / INTEGRITY_FILE).is_file(),
            }
        )
    return len(found), entries


def _files(folder: Path) -> Iterator[tuple[float, int]]:
    """Time and size of each file of a folder that others may be writing or deleting."""
    for path in folder.glob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        yield found.st_mtime, found.st_size


def exports_found(exports: Path) -> dict:
    """`steps` that lie there, `best` of them by validation loss or None, `deleted` to make room, `damaged` index."""
    path = exports / INDEX_FILE
    try:
        entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except ValueError:
        entries, damaged = [], True
    else:
        damaged = not isinstance(entries, list)
        entries = [] if damaged else [entry for entry in entries if isinstance(entry, dict)]
    kept = [entry["step"] for entry in entries if entry.get("kept") and "step" in entry]
    best = exports / BEST
    return {
        "steps": kept,
        "best": exported_step(best.resolve()) if best.is_symlink() else None,
        "deleted": len(entries) - len(kept),
        "damaged": damaged,
    }


def last_words(logs: Path) -> tuple[str, str] | None:
    """Name of the rank log whose process fell first, and the error that its traceback ends with; None without one.

    A rank that lost its peer falls as well: to blame is one that says something else, of these the first.
    """
    fallen = []
    for log in logs.glob("rank_*.log"):
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
            ending = file.read().rpartition(b"=== started ")[2].rpartition(b"Traceback (most recent call last)")
        if ending[1] and (raised := _RAISED.findall(ending[2])):
            said = raised[-1].decode(errors="replace").strip()
            fallen.append(("by peer" in said, written_s(log), log.name, said))
    return min(fallen)[2:] if fallen else None
