"""Samples that cannot be used: each with a short class of reason, the file it is about, and what was found."""

from dataclasses import dataclass

from PIL import UnidentifiedImageError

from megatron_medx.errors import DataError


@dataclass
class Rejected(Exception):
    """A sample of the source that does not become one of the data folder."""

    reason: str
    """A class to count by, such as `truncated image`."""
    found: str
    """One sentence on this case."""
    file: str = ""
    """The file it is about, as the source names it; empty for the line itself."""

    def record(self, sample_id: str) -> dict[str, str]:
        """Its line in rejects.jsonl."""
        return {"id": sample_id, "file": self.file, "reason": self.reason, "found": self.found}


BAD_JSON, BAD_RECORD, DUPLICATE_ID, BAD_TEXT = "bad JSON", "breaks the schema", "duplicate id", "cannot be rendered"

REASON_OF_WORDS = {
    "BurnedInAnnotation": "burned-in text",
    "no image file": "missing file",
    "cannot be opened": "unreadable file",
    " is empty (0 bytes)": "empty file",
    "its header promises": "too many pixels",
    "-fold": "too long and thin",
    "not in HU": "window of what is not HU",
    "asked is frame": "missing frame",
    "without pixel data": "truncated image",
}
"""Words of the image readers' errors -> class of reason; a test provokes each of them."""


def bad_image(error: DataError, file: str, otherwise: str = "truncated image") -> Rejected:
    """The reject that an image reader's error stands for; `otherwise` is its class where the words tell none."""
    words = f"{error.found} {error.needed}"
    reason = next((reason for part, reason in REASON_OF_WORDS.items() if part in words), "")
    if not reason:
        unknown = isinstance(error.__cause__, UnidentifiedImageError)
        reason = "not an image" if unknown else otherwise
    return Rejected(reason, error.found, file)
