"""The last step of a build: parts become one data folder for each split, in the source's order.

Small shards are joined, large ones are moved. Of samples with the same id the first stays, which only here can be
known. A merge that was killed can be repeated: parts stay until the folder is whole.
"""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_medx.config.processor import PROCESSOR_FOLDER, copy_known_files
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.builder.plan import PART_FILE, part_folder
from megatron_medx.data.builder.rejects import DUPLICATE_ID, Rejected
from megatron_medx.data.builder.report import Report
from megatron_medx.data.builder.tar_shards import END_OF_TAR, TarWriter
from megatron_medx.data.builder.task import index_name, shard_name
from megatron_medx.data.index import (
    INDEX_FILE,
    INDEX_SCHEMA,
    MEMBER,
    REJECTS_FILE,
    SHARDS,
    Manifest,
    Shard,
    file_sha256,
    tokenizer_fingerprint,
)

ROW_GROUP_ROWS = 65_536
"""Of index.parquet: a reader takes one at a time."""

COPY_BYTES = 1 << 24
"""Read at a time when shards are joined."""

PROVENANCE_PACKAGES = ("numpy", "pillow", "pydicom", "tokenizers", "transformers")

Repeats = dict[tuple[str, int], list[int]]
"""Split and number of a part -> rows of it whose id an earlier row has."""


def merge(out: Path, work: Path, processor: Path, options: BuildOptions, command: dict, num_tasks: int) -> None:
    """Write the data folder of each split; its manifest comes last.

    Args:
        out: the folder; with splits the one above them.
        work: work folder in which every task is done.
        processor: directory that is copied beside the samples.
        options: of the build.
        command: of `plan.command_of`; becomes the manifest's provenance.
        num_tasks: in the work folder.
    """
    repeats = _repeats(work, options.split_names, num_tasks)
    for split in options.split_names:
        folder = out / split
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        copied = folder / PROCESSOR_FOLDER
        if copied.resolve() != processor.resolve():
            copy_known_files(processor, copied)
        writer = _FolderWriter(folder, options.shard_size_bytes)
        for number in range(num_tasks):
            writer.add_part(part_folder(work, number), split, repeats.get((split, number), []))
        writer.close(options.report_picture)
        versions = {name: version(name) for name in PROVENANCE_PACKAGES}
        Manifest(
            num_samples=writer.report.num_samples,
            num_rejected=writer.report.num_rejected,
            tokenizer=tokenizer_fingerprint(copied),
            index_sha256=file_sha256(folder / INDEX_FILE),
            shards=tuple(writer.shards),
            provenance={**command, "split": split, "versions": versions},
        ).write(folder)


def _repeats(work: Path, splits: tuple[str, ...], num_tasks: int) -> Repeats:
    """Rows whose id stands earlier in the source, in whichever split.

    Two passes in 8 bytes a sample: hashes that occur twice, then the ids behind these alone. Parts come in the order of
    the source; within a part, the splits come one after the other, so an id that two patients of one task have stays
    with the split that is named first.
    """
    places = [(split, number) for number in range(num_tasks) for split in splits]
    hashes = np.concatenate(
        [np.fromiter(map(_hash, ids), np.uint64) for ids in (_ids(work, *place) for place in places)]
    )
    values, counts = np.unique(hashes, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return {}
    seen, repeats = set(), defaultdict(list)
    for place in places:
        for row, sample_id in enumerate(_ids(work, *place)):
            if _hash(sample_id) in suspects:
                if sample_id in seen:
                    repeats[place].append(row)
                seen.add(sample_id)
    return repeats


def _ids(work: Path, split: str, number: int) -> list[str]:
    return pq.read_table(part_folder(work, number) / index_name(split), columns=["id"])["id"].to_pylist()


def _hash(sample_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest())


@dataclass(slots=True)
class _Piece:
    """A shard of a part, without the samples that are left out."""

    path: Path
    shard: dict
    rows: np.ndarray
    """Rows of the part in this shard."""
    kept: np.ndarray
    """(rows,) bool."""
    sizes: np.ndarray
    """(rows,) int64 bytes."""

    @property
    def bytes(self) -> int:
        return int(self.sizes[self.kept].sum())


class _FolderWriter:
    """Shards, index, rejects and report of one data folder."""

    def __init__(self, folder: Path, limit_bytes: int):
        self.folder, self._limit_bytes = folder, limit_bytes
        self.shards: list[Shard] = []
        self.report = Report()
        self._tar: TarWriter | None = None
        self._index = pq.ParquetWriter(folder / INDEX_FILE, INDEX_SCHEMA)
        self._pending = INDEX_SCHEMA.empty_table()
        self._rejects = open(folder / REJECTS_FILE, "w", encoding="utf-8", errors="backslashreplace")

    def add_part(self, folder: Path, split: str, repeated: list[int]) -> None:
        """Append what a task made for a split, but for its rows in `repeated`."""
        part = json.loads((folder / PART_FILE).read_text(encoding="utf-8"))["splits"][split]
        table = pq.read_table(folder / index_name(split))
        kept = np.ones(len(table), dtype=bool)
        kept[repeated] = False
        for row in repeated:
            reject = Rejected(DUPLICATE_ID, "an earlier sample of the source has this id", "")
            part["rejects"].append(reject.record(table["id"][row].as_py()))
        shard_of_row, sizes = table["shard"].to_numpy(), table["size"].to_numpy()
        shard, offset = np.zeros(len(table), dtype=np.int32), np.zeros(len(table), dtype=np.int64)
        for number, made in enumerate(part["shards"]):
            rows = np.flatnonzero(shard_of_row == number)
            if not kept[rows].any():
                continue
            piece = _Piece(folder / shard_name(split, number), made, rows, kept[rows], sizes[rows])
            start = self._place(piece)
            shard[rows] = len(self.shards)
            moved = np.where(piece.kept, piece.sizes, 0)
            offset[rows] = start + np.cumsum(moved) - moved
            if self._tar is None:  # the shard was moved whole and is in the list already
                shard[rows] -= 1
        self._write_rows(_placed(table, shard, offset).filter(pa.array(kept)))
        self.report.add_notes(part["notes"])
        self.report.add_rejects(part["rejects"])
        self._rejects.writelines(json.dumps(reject, ensure_ascii=False) + "\n" for reject in part["rejects"])

    def close(self, with_picture: bool) -> None:
        """Close all files and write the report."""
        self._close_tar()
        self._write_rows(INDEX_SCHEMA.empty_table(), last=True)
        self._index.close()
        self._rejects.close()
        self.report.write(self.folder, with_picture)

    def _place(self, piece: _Piece) -> int:
        """Move or copy a piece; return the byte of the final shard at which it starts.

        A shard of at least half the size that is wanted is moved as it is, which costs nothing.
        """
        if piece.kept.all() and 2 * piece.shard["bytes"] >= self._limit_bytes:
            self._close_tar()
            target = self._next_path()
            if piece.path.exists():  # else an earlier merge moved it
                piece.path.replace(target)
            self.shards.append(Shard(self._name(target), **piece.shard))
            return 0
        if self._tar and self._tar.size + piece.bytes + len(END_OF_TAR) > self._limit_bytes:
            self._close_tar()
        if self._tar is None:
            self._tar = TarWriter(self._next_path())
        start = self._tar.size
        with open(piece.path, "rb") as file:
            for size, is_kept in zip(piece.sizes.tolist(), piece.kept.tolist(), strict=True):
                if not is_kept:
                    file.seek(size, 1)
                    continue
                while size:
                    size -= len(content := file.read(min(size, COPY_BYTES)))
                    self._tar.add(content, num_samples=0)
                self._tar.num_samples += 1
        return start

    def _close_tar(self) -> None:
        if self._tar:
            num_bytes, sha256 = self._tar.close()
            self.shards.append(Shard(self._name(self._tar.path), num_bytes, sha256, self._tar.num_samples))
            self._tar = None

    def _next_path(self) -> Path:
        return self.folder / SHARDS / f"{len(self.shards):05d}.tar"

    def _name(self, path: Path) -> str:
        return f"{SHARDS}/{path.name}"

    def _write_rows(self, table: pa.Table, last: bool = False) -> None:
        """Write whole row groups; the rest waits for more."""
        self.report.add_rows(table)
        self._pending = pa.concat_tables([self._pending, table])
        while len(self._pending) >= ROW_GROUP_ROWS or (last and len(self._pending)):
            self._index.write_table(self._pending.slice(0, ROW_GROUP_ROWS), ROW_GROUP_ROWS)
            self._pending = self._pending.slice(ROW_GROUP_ROWS)


def _placed(table: pa.Table, shard: np.ndarray, offset: np.ndarray) -> pa.Table:
    """The rows of a part with their final shards (rows,) int32 and offsets (rows,) int64."""
    members = table["members"].combine_chunks()
    flat = members.flatten()
    moved = np.repeat(offset - table["offset"].to_numpy(), np.diff(members.offsets.to_numpy()))
    fields = [flat.field("name"), pa.array(flat.field("offset").to_numpy() + moved), flat.field("size")]
    starts = pa.array(members.offsets.to_numpy() - members.offsets[0].as_py(), pa.int32())
    columns = {
        "shard": pa.array(shard, pa.int32()),
        "offset": pa.array(offset, pa.int64()),
        "members": pa.ListArray.from_arrays(starts, pa.StructArray.from_arrays(fields, fields=list(MEMBER))),
    }
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), INDEX_SCHEMA.field(name), values)
    return table
