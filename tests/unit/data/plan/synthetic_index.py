"""Data folders whose index is made up, without shards worth reading: for what looks at lengths alone."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_medx.data.index import INDEX_FILE, INDEX_SCHEMA, Manifest, Shard, file_sha256, tokenizer_fingerprint
from megatron_medx.data.plan.mixture import MixtureSource
from megatron_medx.data.plan.row_plan import RowPlan
from megatron_medx.data.plan.table import TABLE

Image = tuple[int, int, int]
"""Width and height in px, span in tokens."""


def write_index(folder: Path, samples: Sequence[tuple[int, Sequence[Image]]], rows_per_group: int = 1000) -> Path:
    """index.parquet with a row for each (text tokens, images)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "key": f"{number:06}",
            "id": f"sample-{number}",
            "shard": number % 3,
            "offset": 512 * number,
            "size": 1024,
            "sha256": hashlib.sha256(str(number).encode()).digest(),
            "members": [],
            "text_tokens": text_tokens,
            "image_widths": [width for width, _, _ in images],
            "image_heights": [height for _, height, _ in images],
            "image_tokens": [0 for _ in images],
            "image_spans": [span for _, _, span in images],
        }
        for number, (text_tokens, images) in enumerate(samples)
    ]
    table = pa.Table.from_pylist(rows, INDEX_SCHEMA)
    pq.write_table(table, folder / INDEX_FILE, row_group_size=rows_per_group)
    return folder


def write_folder(
    folder: Path, processor: Path, samples: Sequence[tuple[int, Sequence[Image]]], num_rejected: int = 0
) -> Path:
    """The same with a manifest and one shard of 10 bytes."""
    write_index(folder, samples)
    (folder / "shards").mkdir()
    shard = folder / "shards" / "00000.tar"
    shard.write_bytes(b"0123456789")
    Manifest(
        num_samples=len(samples),
        num_rejected=num_rejected,
        tokenizer=tokenizer_fingerprint(processor),
        index_sha256=file_sha256(folder / INDEX_FILE),
        shards=(Shard("shards/00000.tar", 10, file_sha256(shard), len(samples)),),
    ).write(folder)
    return folder


def table_of(tokens: Sequence[int], patches: Sequence[int] | int = 0) -> np.ndarray:
    """(samples,) `TABLE` records with these lengths; a sample costs its tokens."""
    table = np.zeros(len(tokens), TABLE)
    table["tokens"], table["patches"], table["cost"] = tokens, patches, tokens
    return table


def plan_of(*lengths: Sequence[int], **options) -> RowPlan:
    """A plan of sources with these lengths, by default packed into rows of 1,024 tokens."""
    mixture = [MixtureSource(Path(f"source{number}")) for number in range(len(lengths))]
    options = {"mixture": mixture, "seq_len_tokens": 1024, "packing": True, "seed": 7} | options
    return RowPlan([table_of(of_source) for of_source in lengths], **options)
