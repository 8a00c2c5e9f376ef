"""JSON Lines, and lists in one JSON file, as a source."""

import json
from collections.abc import Iterator
from pathlib import Path

from megatron_medx.data.builder.rejects import BAD_JSON, BAD_RECORD, Rejected
from megatron_medx.data.builder.sources.conversations import to_schema
from megatron_medx.data.builder.sources.item import CHUNK_ITEMS, Item
from megatron_medx.data.samples import parse_line
from megatron_medx.errors import DataError

LISTED_FILE = "items.jsonl"
"""Lines that a source wrote into the build's work folder, because its own file cannot be read from the middle."""


class Lines:
    """Files with one JSON object a line.

    Args:
        files: in their order.
        folder: what the paths in them are relative to.
    """

    def __init__(self, files: list[Path], folder: Path):
        self.files, self.folder = files, folder

    def chunks(self, work: Path) -> Iterator[dict]:
        """Byte ranges of CHUNK_ITEMS lines; see `Source`."""
        for number, path in enumerate(self.files):
            yield from line_chunks(path, number)

    def items(self, chunk: dict, work: Path) -> Iterator[Item]:
        """See `Source`."""
        path = self.files[chunk["file"]]
        for number, line in chunk_lines(path, chunk):
            yield item_of_line(line, f"{path.name} line {number}", f"{path.stem}-{number}", self.folder)


class JsonList:
    """A JSON file that holds one list, as LLaVA's do. It is read once, into lines.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path, self.files, self.folder = path, [path], path.parent

    def chunks(self, work: Path) -> Iterator[dict]:
        """See `Source`.

        Raises:
            DataError: the file is not JSON or holds no list.
        """
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.path} is not JSON ({error})", "a JSON file with a list of entries", "write the file again"
            ) from error
        if not isinstance(entries, list):
            raise DataError(
                f"{self.path} holds a JSON {type(entries).__name__}",
                "a list of entries, as in LLaVA's files, or one JSON object a line in a file named .jsonl",
                "name the file .jsonl if it is JSON Lines",
            )
        with open(work / LISTED_FILE, "w", encoding="utf-8") as listed:
            listed.writelines(json.dumps(entry) + "\n" for entry in entries)
        yield from line_chunks(work / LISTED_FILE, 0)

    def items(self, chunk: dict, work: Path) -> Iterator[Item]:
        """See `Source`."""
        for number, line in chunk_lines(work / LISTED_FILE, chunk):
            yield item_of_line(line, f"{self.path.name} entry {number}", f"{self.path.stem}-{number}", self.folder)


def line_chunks(path: Path, number: int) -> Iterator[dict]:
    """Ranges of CHUNK_ITEMS lines of the file with that number: first and last byte, number of the first line."""
    start, end, first, count = 0, 0, 1, 0
    with open(path, "rb") as file:
        for line in file:
            end += len(line)
            count += 1
            if count == CHUNK_ITEMS:
                yield {"file": number, "start": start, "end": end, "line": first, "count": count}
                start, first, count = end, first + count, 0
    if count:
        yield {"file": number, "start": start, "end": end, "line": first, "count": count}


def chunk_lines(path: Path, chunk: dict) -> Iterator[tuple[int, bytes]]:
    """Number and content of each line of a chunk that is not blank."""
    with open(path, "rb") as file:
        file.seek(chunk["start"])
        for number in range(chunk["line"], chunk["line"] + chunk["count"]):
            line = file.readline()
            if line.strip():
                yield number, line


def item_of_line(line: bytes, where: str, fallback_id: str, folder: Path) -> Item:
    """The item of a line's JSON object; a line that has none is an item with a problem."""
    try:
        record = parse_line(line)
    except ValueError as error:
        return Item(where, {}, folder, problem=Rejected(BAD_JSON, error.args[0]))
    try:
        return Item(where, to_schema(record, fallback_id), folder)
    except ValueError as error:
        return Item(where, record, folder, problem=Rejected(BAD_RECORD, error.args[0]))
