"""WebDataset tar files, byte for byte the same wherever they are written.

Each sample is `<key>.json` and then its files `<key>.0.dcm`, `<key>.1.png`. Headers are USTAR, with neither times nor
owners. A sample is one run of bytes, so it can be read, checked and moved alone.
"""

import hashlib
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.data.images.dicom import is_dicom
from megatron_medx.data.images.nifti import GZIP, is_nifti

BLOCK_BYTES = tarfile.BLOCKSIZE
END_OF_TAR = bytes(2 * BLOCK_BYTES)

MAX_KEY_CHARS = 72
"""A USTAR header has 100 bytes for a name; the rest is for what follows the key."""

SUFFIX_OF_START = (
    (b"\x89PNG\r\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"BM", "bmp"),
)
"""First bytes of a file -> suffix; readers of WebDataset choose their decoder by it."""


@dataclass(frozen=True, slots=True)
class PackedSample:
    """A sample as bytes of a tar."""

    content: bytes
    sha256: bytes
    """Of the content."""
    members: list[tuple[str, int, int]]
    """Name, first byte of the content within this sample's bytes, size."""


def sample_key(sample_id: str) -> str:
    """Key of a WebDataset sample: the id, or what is left of it with a hash, where it has other characters than
    letters, digits, - and _.

    A dot would end the key for readers. Two ids never share a key, but for a collision of 48 bits.

    Example: `ct-17` -> `ct-17`; `a/b.png` -> `a_b_png-` and 12 hex digits.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", sample_id)[:MAX_KEY_CHARS]
    if plain == sample_id and not plain.startswith("__"):  # webdataset skips names such as __meta__
        return plain
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{plain[: MAX_KEY_CHARS - 13].lstrip('_')}-{digest}".lstrip("-")


def member_suffix(content: bytes) -> str:
    """What a file is, by its first bytes: dcm, nii, png, jpg, tif, bmp, webp or, for any other image, img."""
    if is_dicom(content):
        return "dcm"
    if is_nifti(content):
        return "nii.gz" if content.startswith(GZIP) else "nii"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((suffix for start, suffix in SUFFIX_OF_START if content.startswith(start)), "img")


def pack_sample(key: str, files: list[tuple[str, bytes]]) -> PackedSample:
    """A sample's members, one behind the other, each filled up to whole blocks.

    Args:
        files: what follows the key (`json`, `0.dcm`) and content.
    """
    pieces, members, size = [], [], 0
    for name, content in files:
        header = tarfile.TarInfo(f"{key}.{name}")
        header.size, header.mode = len(content), 0o644
        block = header.tobuf(tarfile.USTAR_FORMAT)
        padding = bytes(-len(content) % BLOCK_BYTES)
        members.append((f"{key}.{name}", size + len(block), len(content)))
        pieces += [block, content, padding]
        size += len(block) + len(content) + len(padding)
    content = b"".join(pieces)
    return PackedSample(content, hashlib.sha256(content).digest(), members)


class TarWriter:
    """Writes one tar from packed samples; keeps its size and checksum."""

    def __init__(self, path: Path):
        self.path = path
        self.num_samples = 0
        self.size = 0
        self._digest = hashlib.sha256()
        self._file = open(path, "wb")

    def add(self, content: bytes, num_samples: int = 1) -> int:
        """Append samples; return the byte at which they start."""
        start = self.size
        self._write(content)
        self.num_samples += num_samples
        return start

    def close(self) -> tuple[int, str]:
        """End the tar; return its bytes and its SHA-256 as hex digits."""
        self._write(END_OF_TAR)
        self._file.close()
        return self.size, self._digest.hexdigest()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.size += len(content)
