"""One task of a build: some chunks of the source become shards and a part of the index, for each split."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.builder.plan import PART_FILE, part_folder, read_tasks
from megatron_medx.data.builder.rejects import Rejected
from megatron_medx.data.builder.sample_files import Notes, PreparedSample, prepare_sample
from megatron_medx.data.builder.sources.finding import find_source
from megatron_medx.data.builder.sources.item import Item
from megatron_medx.data.builder.tar_shards import TarWriter, pack_sample, sample_key
from megatron_medx.data.image_grid import image_tokens
from megatron_medx.data.index import INDEX_SCHEMA, MEMBER, file_sha256
from megatron_medx.data.samples import NOTES

ROWS_IN_MEMORY = 4096
"""Rows of the index that are gathered before they are written."""


@dataclass(slots=True)
class SplitPart:
    """What a task made for one split."""

    shards: list[dict] = field(default_factory=list)
    """`bytes`, `sha256` and `samples` of each; shard k is `<split>-<k>.tar`."""
    rejects: list[dict] = field(default_factory=list)
    """Lines of rejects.jsonl."""
    notes: Notes = field(default_factory=Notes)


@dataclass(frozen=True, slots=True)
class BuildTask:
    """Carries out any task of a build; pickled for worker processes and cluster jobs."""

    source: Path
    processor: Path
    work: Path
    options: BuildOptions

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """As `datatrove` calls a step: the rank is the number of the task."""
        self.run(rank)

    def run(self, number: int) -> None:
        """Do the task of that number; what an earlier attempt left is written anew."""
        folder = part_folder(self.work, number)
        if (folder / PART_FILE).is_file():
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        tokenizer = _tokenizer(self.processor, file_sha256(self.processor / "tokenizer.json"))
        source = find_source(self.source, self.options.patient_key)
        settings = json.loads((self.processor / "preprocessor_config.json").read_text(encoding="utf-8"))
        limit = self.options.shard_size_bytes
        splits = {name: _SplitWriter(folder, name, limit, settings) for name in self.options.split_names}
        num_items = 0
        for chunk in read_tasks(self.work)[number]:
            num_items += chunk["count"]
            for item in source.items(chunk, self.work):
                self._take(item, tokenizer, splits)
        parts = {name: asdict(splits[name].close()) for name in splits}
        draft = folder / "part.tmp"
        draft.write_text(json.dumps({"num_items": num_items, "splits": parts}), encoding="utf-8")
        draft.replace(folder / PART_FILE)

    def _take(self, item: Item, tokenizer: PreTrainedTokenizerBase, splits: dict[str, "_SplitWriter"]) -> None:
        """Store a sample, or its reject, in the split of its patient or question."""
        try:
            prepared = prepare_sample(item, self.options, tokenizer)
        except Rejected as reject:
            given_id, patient = item.record.get("id"), item.record.get("patient")
            sample_id = given_id if isinstance(given_id, str) and given_id else item.where
            split = self.options.split_of(patient if isinstance(patient, str) and patient else sample_id)
            splits[split].part.rejects.append(reject.record(sample_id))
        else:
            sample = prepared.sample
            question = sample.choice.question if sample.choice else ""  # its options stay together
            splits[self.options.split_of(sample.patient or question or sample.sample_id)].add(prepared)


class _SplitWriter:
    """Shards and index rows of one split."""

    def __init__(self, folder: Path, split: str, shard_size_bytes: int, image_settings: dict):
        self.part = SplitPart()
        self._image_settings = image_settings
        self._folder, self._split, self._limit_bytes = folder, split, shard_size_bytes
        self._rows: list[dict] = []
        self._tar: TarWriter | None = None
        self._index: pq.ParquetWriter | None = None

    def add(self, prepared: PreparedSample) -> None:
        sample = prepared.sample
        self.part.notes.add(prepared.notes)
        key = sample_key(sample.sample_id)
        packed = pack_sample(key, [("json", prepared.record), *prepared.files])
        if self._tar and self._tar.size + len(packed.content) > self._limit_bytes:
            self._close_tar()
        if self._tar is None:
            self._tar = TarWriter(self._folder / shard_name(self._split, len(self.part.shards)))
        offset = self._tar.add(packed.content)
        images = sample.images
        self._rows.append(
            {
                "key": key,
                "id": sample.sample_id,
                "shard": len(self.part.shards),
                "offset": offset,
                "size": len(packed.content),
                "sha256": packed.sha256,
                "members": [
                    dict(zip(MEMBER.names, (name, offset + start, size), strict=True))
                    for name, start, size in packed.members
                ],
                "text_tokens": prepared.text.tokens,
                "image_widths": [image.size[0] for image in images],
                "image_heights": [image.size[1] for image in images],
                "image_tokens": [image_tokens(*image.size, self._image_settings) for image in images],
                "image_spans": prepared.text.image_spans,
                **{name: getattr(sample, name) for name in NOTES},
            }
        )
        if len(self._rows) >= ROWS_IN_MEMORY:
            self._write_rows()

    def close(self) -> SplitPart:
        if self._tar:
            self._close_tar()
        self._write_rows()
        self._index.close()
        return self.part

    def _close_tar(self) -> None:
        size, sha256 = self._tar.close()
        self.part.shards.append({"bytes": size, "sha256": sha256, "samples": self._tar.num_samples})
        self._tar = None

    def _write_rows(self) -> None:
        if self._index is None:
            self._index = pq.ParquetWriter(self._folder / index_name(self._split), INDEX_SCHEMA)
        if self._rows:
            self._index.write_table(pa.Table.from_pylist(self._rows, INDEX_SCHEMA))
        self._rows = []


def shard_name(split: str, number: int) -> str:
    """Of a task's shard, inside its folder."""
    return f"{split or 'all'}-{number:05d}.tar"


def index_name(split: str) -> str:
    """Of a task's part of the index, inside its folder."""
    return f"{split or 'all'}.parquet"


@lru_cache(maxsize=2)
def _tokenizer(processor: Path, sha256: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory; loading takes longer than a small build. The checksum is for the cache."""
    return AutoTokenizer.from_pretrained(processor, local_files_only=True)
