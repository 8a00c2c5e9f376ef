"""What every source gives: items in a fixed order, by chunks that tasks share out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from megatron_medx.data.builder.rejects import Rejected
from megatron_medx.data.images.image_file import ImageFile

CHUNK_ITEMS = 250
"""Items of a chunk where the source leaves the choice: seconds of work with images, so that little is done twice."""


@dataclass(slots=True)
class Item:
    """One sample of a source, not yet checked."""

    where: str
    """Its place, such as `samples.jsonl line 7`: its name in rejects.jsonl where it has no id."""
    record: dict
    """As a line of samples.jsonl; may break the schema."""
    folder: Path
    """What its paths are relative to."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Content of files that the source holds itself, by the names in the record."""
    stacks: dict[str, list[str]] = field(default_factory=dict)
    """Files of a volume of several, by its name in the record."""
    problem: Rejected | None = None
    """Why there is no record."""

    def file(self, name: str) -> ImageFile:
        """The content of a file that the record names.

        Raises:
            DataError: it cannot be read.
        """
        if name in self.files:
            return ImageFile(name, self.files[name])
        file = ImageFile.of(self.folder / name)
        return ImageFile(name, file.content)


class Source(Protocol):
    """Where samples come from. Making one is cheap: every task makes its own."""

    folder: Path
    """Holds the processor where none is named."""
    files: list[Path]
    """Files with the records; their size tells whether the source is still the same. Empty where there is none."""

    def chunks(self, work: Path) -> Iterator[dict]:
        """Pieces of the source in its order, as JSON objects with `count`, their number of items.

        Args:
            work: folder for what `items` needs and is dear to find; kept until the build is done.
        """
        ...

    def items(self, chunk: dict, work: Path) -> Iterator[Item]:
        """The items of a chunk, in order.

        Args:
            chunk: from `chunks`.
            work: the same folder.
        """
        ...
