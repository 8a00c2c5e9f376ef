"""Samples of a data folder, each with one ranged read of its shard.

Comes in: a data folder and its table. Goes out: the sample of any number, with its image files, checked against the
checksum of the index: bytes that pass are those that the build has decoded.
"""

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.index import Manifest
from megatron_medx.data.samples import Sample, parse_sample
from megatron_medx.errors import DataError


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample and the files that it names."""

    sample: Sample
    files: dict[str, ImageFile]
    """By the names that the sample's images have."""


class DamagedSample(DataError):
    """Bytes that are not those of the index; the same on every machine that reads the shard."""


class ShardReader:
    """Random access to the samples of one data folder.

    Args:
        folder: that `medx data build` wrote.
        table: of `plan/table.py`; row i tells where sample i lies.
    """

    def __init__(self, folder: Path, table: np.ndarray):
        self.folder = Path(folder)
        self.table = table
        self._shards = [shard.name for shard in Manifest.read(folder).shards]

    def read(self, number: int) -> StoredSample:
        """The sample of a number.

        Raises:
            DamagedSample: its bytes are not those that the build wrote.
            DataError: the shard cannot be read here.
        """
        row = self.table[number]
        name, offset, size = self._shards[row["shard"]], int(row["offset"]), int(row["size"])
        where = f"{self.folder / name}, bytes {offset} to {offset + size}"
        try:
            # opened each time: there may be more shards than files that a process may hold open
            with open(self.folder / name, "rb", buffering=0) as shard:
                stored = os.pread(shard.fileno(), size, offset)
        except OSError as error:
            raise DataError(
                f"{where} cannot be read ({error.strerror})",
                "the shard that the build wrote, on every machine of the run",
                "look at the disk, then go on with --resume",
            ) from error
        if checksum(hashlib.sha256(stored).digest()) != row["hash"]:
            raise DamagedSample(
                f"{where} (sample number {number}) changed since it was built: its checksum is another",
                "the bytes that the index was made of",
                "copy the shard again or build the folder again; data.max_bad_fraction above 0 leaves such samples out",
            )
        return _unpack(stored, where)


def checksum(sha256: bytes) -> int:
    """What the table keeps of a SHA-256: its first 8 bytes, little-endian."""
    return int.from_bytes(sha256[:8], "little")


def _unpack(stored: bytes, where: str) -> StoredSample:
    """The members of one sample: `<key>.json`, and images by what follows the key."""
    files, record = {}, {}
    with tarfile.open(fileobj=io.BytesIO(stored), mode="r:") as members:
        for member in members:
            content = members.extractfile(member).read()
            name = member.name.partition(".")[2]
            if name == "json":
                record = json.loads(content)
            else:
                files[name] = ImageFile(f"{where}: {member.name}", content)
    return StoredSample(parse_sample(record), files)
