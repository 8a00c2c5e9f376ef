"""The content of an image file, and what errors call it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from megatron_medx.errors import DataError


@dataclass(frozen=True, slots=True)
class ImageFile:
    """What image readers take: no path, so that a file of a folder and a member of a shard are the same to them."""

    name: str
    """What errors call it: a path, or `shards/00000.tar: key.0.dcm`."""
    content: bytes = field(repr=False)

    @classmethod
    def of(cls, path: Path) -> Self:
        """The file at `path`.

        Raises:
            DataError: there is none, or it cannot be opened.
        """
        try:
            return cls(str(path), Path(path).read_bytes())
        except FileNotFoundError as error:
            raise DataError(
                f"no image file {path}",
                "every image a sample names, relative to the data folder",
                "copy the file there, or take the sample out of samples.jsonl",
            ) from error
        except OSError as error:
            raise DataError(
                f"{path} cannot be opened ({type(error).__name__}: {error.strerror})",
                "an image file that may be read",
                "look at its rights and at the disk, or take the sample out of samples.jsonl",
            ) from error
