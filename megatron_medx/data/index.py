"""The data folder that training reads: what `medx data build` writes and every reader relies on.

    manifest.json     what lies here: counts, sizes, checksums, the tokenizer; written last: a folder with it is whole
    index.parquet     a row for each sample, in the order of their numbers
    shards/           WebDataset tar files: <key>.json, then <key>.0.dcm, <key>.1.png, ... for each sample
    processor/        tokenizer and image-processor files that the lengths were measured with
    rejects.jsonl     what could not be used, with the reason
    report.json, report.png, deidentification.json

A record in a shard is a line of samples.jsonl (`samples.py`) whose images are named by what follows the key ("0.dcm"),
with their `size` in px, and without volumes: these have become images with a `position`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import pyarrow as pa

from megatron_medx.errors import DataError

MANIFEST_FILE, INDEX_FILE, SHARDS, REJECTS_FILE = "manifest.json", "index.parquet", "shards", "rejects.jsonl"

FORMAT = 1
"""Of the folder; a reader of another one refuses."""

MEMBER = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
"""File in a tar: its name, the byte in the shard where its content starts, and its bytes."""

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of the WebDataset sample: letters, digits, - and _
        ("id", pa.string()),
        ("shard", pa.int32()),  # number in the manifest's list
        ("offset", pa.int64()),  # first byte in the shard of the first member's header
        ("size", pa.int64()),  # bytes from there to the end of the last member's padding
        ("sha256", pa.binary(32)),  # of exactly these bytes
        ("members", pa.list_(MEMBER)),
        ("text_tokens", pa.int32()),  # of the rendered sample, each image counted as the one placeholder it starts as
        ("image_widths", pa.list_(pa.int32())),  # px, as the image is shown: upright
        ("image_heights", pa.list_(pa.int32())),
        ("image_tokens", pa.list_(pa.int32())),  # under the processor's own limits of area; a run may have others
        # tokens that go with an image when a sample is shortened (position, vision start and end, one placeholder); 0
        # for one that stays
        ("image_spans", pa.list_(pa.int32())),
        ("modality", pa.string()),
        ("source", pa.string()),
        ("license", pa.string()),
        ("language", pa.string()),
        ("patient", pa.string()),
    ]
)
"""Columns of index.parquet."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file."""

    name: str
    """Relative to the data folder: `shards/00000.tar`."""
    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What lies in a data folder."""

    num_samples: int
    num_rejected: int
    """Samples of the source that are not here; `rejects.jsonl` has a line for each."""
    tokenizer: str
    """`tokenizer_fingerprint` of the processor."""
    index_sha256: str
    shards: tuple[Shard, ...]
    provenance: dict = field(default_factory=dict)
    """Source, options, versions and date of the build."""
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a data folder.

        Raises:
            DataError: there is none, or it is of another format.
        """
        path = Path(folder) / MANIFEST_FILE
        if not path.is_file():
            raise DataError(
                f"no {path}",
                "a data folder that `medx data build` wrote",
                "medx data build SOURCE OUT, then data.path=OUT; `medx data demo data/demo` writes the demo's",
            )
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise DataError(
                f"{path} is of format {values.get('format')}",
                f"format {FORMAT}",
                "build the folder again from its source",
            )
        shards = tuple(Shard(**shard) for shard in values.pop("shards"))
        return cls(shards=shards, **values)

    def write(self, folder: Path) -> None:
        """Write it, at once or not at all."""
        path = Path(folder) / MANIFEST_FILE
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        draft.replace(path)


def tokenizer_fingerprint(processor: Path) -> str:
    """SHA-256 of what decides how many tokens a sample has: the tokenizer and the chat template.

    Args:
        processor: Hugging Face directory.
    """
    digest = hashlib.sha256()
    for name in ("tokenizer.json", "chat_template.jinja"):
        digest.update((Path(processor) / name).read_bytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
