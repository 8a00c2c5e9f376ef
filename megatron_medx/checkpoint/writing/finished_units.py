"""The record of a conversion's finished files, which lets an attempt go on where a killed one ended.

    OUT.partial/
        lock                 held by the attempt that is at work; the kernel lets go of it when its processes end
        fingerprint.json     what is being made from what; another fingerprint makes the finished files worthless
        finished/NAME.json   one for each finished file, with what its writer knows of it
        content/             what OUT will be

A file counts as finished once its data, its name and then its record are on the disk, in this order. None of this
reaches OUT: only `content` gets its name.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from megatron_medx.errors import CheckpointError

LOCK_FILE, FINGERPRINT_FILE, FINISHED, CONTENT = "lock", "fingerprint.json", "finished", "content"

LOCK_WAIT_S = 3.0
"""How long to wait for a lock: workers of a killed attempt are killed too, but may be inside a write to the disk."""


class InterruptedConversion(CheckpointError):
    """The conversion stopped for a reason that lies in the machine: finished files are kept for the next attempt."""


class FinishedUnits:
    """Records of finished files.

    Args:
        partial: the folder OUT.partial.
    """

    def __init__(self, partial: Path):
        self._content, self._folder = partial / CONTENT, partial / FINISHED

    def facts(self) -> dict[str, dict]:
        """File name -> what was recorded of it, for every file that is finished and still has its size."""
        found = {}
        for path in sorted(self._folder.glob("*.json")):
            record = json.loads(path.read_text())
            file = self._content / record["file"]
            if file.is_file() and file.stat().st_size == record["size_bytes"]:
                found[record["name"]] = record["facts"]
        return found

    def add(self, name: str, file: Path, facts: dict) -> None:
        """Record a file as finished.

        Args:
            name: of the unit.
            file: where it lies in the content; its writer has forced its data to disk.
            facts: what is needed of it later, as JSON.
        """
        sync_path(file.parent)
        record = {
            "name": name,
            "file": str(file.relative_to(self._content)),
            "size_bytes": file.stat().st_size,
            "facts": facts,
        }
        write_durably(self._folder / f"{name}.json", json.dumps(record))


def fingerprint_changes(partial: Path, fingerprint: Mapping[str, object]) -> list[str] | None:
    """Names of the parts in which an earlier attempt differs from this one; None where there was none.

    Args:
        partial: the folder OUT.partial.
        fingerprint: of this attempt; values are JSON.
    """
    path = partial / FINGERPRINT_FILE
    if not path.is_file():
        return None
    stored, now = json.loads(path.read_text()), _digests(fingerprint)
    return sorted(name for name in {*stored, *now} if stored.get(name) != now.get(name))


def write_fingerprint(partial: Path, fingerprint: Mapping[str, object]) -> None:
    """Note what an attempt makes, before it writes any of it."""
    write_durably(partial / FINGERPRINT_FILE, json.dumps(_digests(fingerprint)))


def _digests(fingerprint: Mapping[str, object]) -> dict[str, str]:
    """A sha256 for each part: the plan alone may list 100,000 tensors."""
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
        for name, part in fingerprint.items()
    }


@contextmanager
def locked(partial: Path) -> Iterator[None]:
    """Create OUT.partial where it is absent and hold its lock.

    Raises:
        CheckpointError: another process holds it.
    """
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while True:
        partial.mkdir(exist_ok=True)
        with (partial / LOCK_FILE).open("a") as file:
            if _try_lock(file.fileno()) and _is_still(partial / LOCK_FILE, file.fileno()):
                yield
                return
        if time.monotonic() > deadline_s:
            raise CheckpointError(
                f"another process is writing {partial}",
                "one conversion into a folder at a time",
                "wait for it, or choose another output folder",
            )
        time.sleep(0.05)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether a locked file still has its name; its owner before may just have removed the folder."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def clear(partial: Path) -> None:
    """Empty OUT.partial, but for the lock, which its holder still needs."""
    for path in partial.iterdir():
        if path.name != LOCK_FILE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove(partial: Path) -> None:
    """Remove OUT.partial, the lock last: whoever takes it next must find nothing."""
    clear(partial)
    shutil.rmtree(partial, ignore_errors=True)


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that after a power cut it is whole or absent."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """fsync one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
