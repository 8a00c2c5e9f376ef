"""Files of JSON lines that others append to: each look reads what was added since the last one.

A resume rewrites such a file without the steps that it repeats (training/), so the file may shrink, be another one, or
have other bytes where an earlier look ended: then it is read from its beginning again.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import orjson

CHUNK_BYTES = 2**16
"""Read at once: a file of 100,000 steps, some 60 MB, is never in memory whole, and lines are gone again before there
are so many that Python searches them for garbage, which with 1 MB costs up to a third of the time."""

MARK_BYTES = 128
"""Last bytes of what was read that are compared at the next look; they hold times, so no two lines are alike."""


class AppendedLines:
    """The JSON objects of one file of lines; what is no object, or not yet a whole line, is left out."""

    def __init__(self, path: Path):
        self._path = path
        self._offset, self._mark = 0, b""

    def look(self) -> tuple[bool, Iterator[list[dict]]]:
        """Whether the file is read from its beginning, and its objects from there or since the last look, in lists.

        The iterator must be exhausted before the next look. Of no file, or one that vanishes, there are none.

        Raises:
            OSError: the file is there and cannot be read.
        """
        is_same = self._offset > 0 and self._has_mark()
        if not is_same:
            self._offset, self._mark = 0, b""
        return not is_same, self._objects()

    def _has_mark(self) -> bool:
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset - len(self._mark))
                return file.read(len(self._mark)) == self._mark
        except FileNotFoundError:
            return False

    def _objects(self) -> Iterator[list[dict]]:
        try:
            file = open(self._path, "rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self._offset)
            unfinished = b""
            while chunk := file.read(CHUNK_BYTES):
                whole, newline, rest = chunk.rpartition(b"\n")
                if not newline:
                    unfinished += rest
                    continue
                lines = unfinished + whole
                unfinished = rest
                self._offset += len(lines) + 1
                self._mark = (self._mark + lines[-MARK_BYTES:] + newline)[-MARK_BYTES:]
                yield [found for line in lines.split(b"\n") if (found := json_object(line)) is not None]


def json_object(line: bytes) -> dict | None:
    """The object that a line holds, None of any other; `NaN`, which Python writes and JSON lacks, is a null in it."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            found = json.loads(line, parse_constant=lambda name: None)
        except ValueError:  # also of bytes that are no text
            return None
    return found if isinstance(found, dict) else None


def fingerprint(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written to: its number, size and time; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
