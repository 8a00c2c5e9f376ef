"""Parquet and Arrow files as a source: columns are the fields of the schema, images lie in them or beside them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_medx.data.builder.rejects import BAD_JSON, BAD_RECORD, Rejected
from megatron_medx.data.builder.sources.conversations import to_schema
from megatron_medx.data.builder.sources.item import CHUNK_ITEMS, Item
from megatron_medx.data.samples import NOTES
from megatron_medx.errors import DataError

BATCH_ROWS = 32
"""Rows in memory at a time: they may hold images."""

NESTED_FIELDS = ("messages", "conversations", "choice", "metadata")
"""Columns that hold structs, or their JSON text."""


class Tables:
    """Parquet files, or Arrow files as `datasets.save_to_disk` writes them.

    A chunk is a row group or some record batches: what can be read without reading what stands before it.

    Args:
        files: in their order.
        folder: what paths in the tables are relative to.
    """

    def __init__(self, files: list[Path], folder: Path):
        self.files, self.folder = files, folder

    def chunks(self, work: Path) -> Iterator[dict]:
        """See `Source`.

        Raises:
            DataError: a file is no parquet or Arrow file.
        """
        for number, path in enumerate(self.files):
            try:
                yield from _parquet_chunks(path, number) if path.suffix == ".parquet" else _arrow_chunks(path, number)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(
                    f"{path} cannot be read ({str(error).splitlines()[0]})",
                    "a whole parquet or Arrow file",
                    "copy the file again",
                ) from error

    def items(self, chunk: dict, work: Path) -> Iterator[Item]:
        """See `Source`."""
        path, number = self.files[chunk["file"]], chunk["row"]
        for batch in _batches(path, chunk):
            for row in batch.to_pylist():
                number += 1
                yield _item(row, f"{path.name} row {number}", f"{path.stem}-{number}", self.folder)


def _parquet_chunks(path: Path, number: int) -> Iterator[dict]:
    with pq.ParquetFile(path) as file:
        row = 0
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            yield {"file": number, "group": group, "row": row, "count": count}
            row += count


def _arrow_chunks(path: Path, number: int) -> Iterator[dict]:
    row = count = num_batches = at = 0
    for at, batch in enumerate(_record_batches(path), start=1):
        count, num_batches = count + batch.num_rows, num_batches + 1
        if count >= CHUNK_ITEMS:
            yield {"file": number, "batch": at - num_batches, "batches": num_batches, "row": row, "count": count}
            row, count, num_batches = row + count, 0, 0
    if count:
        yield {"file": number, "batch": at - num_batches, "batches": num_batches, "row": row, "count": count}


def _record_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Batches of an Arrow stream or file, mapped into memory: those that are passed over cost nothing."""
    with pa.memory_map(str(path)) as mapped:
        if mapped.read(6) == b"ARROW1":
            mapped.seek(0)
            file = pa.ipc.open_file(mapped)
            yield from (file.get_batch(k) for k in range(file.num_record_batches))
        else:
            mapped.seek(0)
            yield from pa.ipc.open_stream(mapped)


def _batches(path: Path, chunk: dict) -> Iterator[pa.RecordBatch]:
    """The rows of a chunk, few at a time."""
    if "group" in chunk:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH_ROWS, row_groups=[chunk["group"]])
        return
    for number, batch in enumerate(_record_batches(path)):
        if number >= chunk["batch"] + chunk["batches"]:
            return
        if number >= chunk["batch"]:
            yield from (batch.slice(start, BATCH_ROWS) for start in range(0, batch.num_rows, BATCH_ROWS))


def _item(row: dict, where: str, fallback_id: str, folder: Path) -> Item:
    """A row as an item. Columns that the schema lacks are left out; an empty cell is a field that is missing."""
    files: dict[str, bytes] = {}
    row = {name: value for name, value in row.items() if value is not None}
    try:
        for name in NESTED_FIELDS:
            if isinstance(row.get(name), str):
                row[name] = json.loads(row[name])
        content = row.get("content")
        if isinstance(content, str) and content.lstrip().startswith('[{"'):
            row["content"] = json.loads(content)
    except (ValueError, RecursionError) as error:
        return Item(where, {}, folder, problem=Rejected(BAD_JSON, f"{name}: {error}"))
    cells = row.get("images", row.get("image", []))
    images = [_stored(cell, files) for cell in (cells if isinstance(cells, list) else [cells])]
    sample_id = str(row.get("id", fallback_id))
    record = {"id": sample_id} | {name: row[name] for name in (*NOTES, "choice", "metadata") if name in row}
    try:
        if "conversations" in row and "messages" not in row:
            record = to_schema(record | {"conversations": row["conversations"], "image": images}, fallback_id)
        elif "messages" not in row and "content" not in row and isinstance(row.get("text"), str) and not images:
            record["content"] = row["text"]
        else:
            record |= {name: row[name] for name in ("messages", "content") if name in row}
            _fill_parts(record, images, files)
    except ValueError as error:
        return Item(where, record, folder, problem=Rejected(BAD_RECORD, error.args[0]))
    return Item(where, record, folder, files)


def _stored(cell: object, files: dict[str, bytes]) -> str:
    """The name of an image: its path, or one by which `files` holds its bytes."""
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(content, bytes):
        name = path if isinstance(path, str) and path and path not in files else f"image {len(files)}"
        name = name.lstrip("/").replace("..", "_")  # a name inside the table, never opened
        files[name] = content
        return name
    return path if isinstance(path, str) else str(content)


def _fill_parts(record: dict, images: list[str], files: dict[str, bytes]) -> None:
    """Give image parts without a name the row's images, in their order; take out the nulls that Arrow filled in."""
    waiting, num_parts = iter(images), 0
    turns = record.get("messages", [record])
    for turn in turns if isinstance(turns, list) else []:
        if not isinstance(turn, dict):
            continue
        for key in [key for key, value in turn.items() if value is None]:
            del turn[key]
        parts = turn.get("content")
        for part in [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []:
            for key in [key for key, value in part.items() if value is None]:
                del part[key]
            if part.get("type") != "image":
                continue
            if isinstance(part.get("image"), dict | bytes):
                part["image"] = _stored(part["image"], files)
            elif "image" not in part:
                num_parts += 1
                part["image"] = next(waiting, "")
    if num_parts and num_parts != len(images):
        raise ValueError(f"{num_parts} image parts without a name, {len(images)} images", "one image for each")
