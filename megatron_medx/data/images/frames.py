"""The frames of a DICOM file as files of their own, so that a slice of an enhanced file is stored without the rest."""

from collections.abc import Iterator
from io import BytesIO

import pydicom
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import get_expected_length

PIXEL_FIELDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

PER_FRAME = "PerFrameFunctionalGroupsSequence"

OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
"""Where frames begin; of no use for one."""


def split_frames(content: bytes) -> Iterator[bytes]:
    """Each frame with the header of all and its own functional groups; pixel data are cut, not decoded.

    The header names one instance, so all frames have its SOPInstanceUID. `read_image` shows frame 0 of each as it shows
    the frame of the whole.

    Raises:
        ValueError: frames that do not begin with a byte, as those of one bit a pixel may.
        Exception: whatever pydicom says of a broken file; call it within `files.errors_named`.
    """
    header = pydicom.dcmread(BytesIO(content))
    num_frames = int(header.get("NumberOfFrames") or 1)
    groups = list(header.get(PER_FRAME) or [])
    field = next(name for name in PIXEL_FIELDS if name in header)
    header.NumberOfFrames = 1
    for frame, pixels in enumerate(_pixels(header, field, num_frames)):
        for name in OFFSETS:
            if name in header:
                del header[name]
        header[field].value = pixels
        if groups:
            header[PER_FRAME].value = groups[frame : frame + 1]
        file = BytesIO()
        header.save_as(file, enforce_file_format=True)
        yield file.getvalue()


def _pixels(header: pydicom.Dataset, field: str, num_frames: int) -> list[bytes]:
    """Value of the pixel data's field for each frame; `header` says that it holds one."""
    stored = header[field].value
    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        offsets = tuple(header[name].value for name in OFFSETS) if OFFSETS[0] in header else None
        frames = generate_frames(stored, number_of_frames=num_frames, extended_offsets=offsets)
        return [encapsulate([frame]) for frame in frames]
    if header.BitsAllocated == 1 and int(header.Rows) * int(header.Columns) % 8:
        raise ValueError(f"{header.Rows} x {header.Columns} pixels of one bit fill no whole number of bytes")
    size = get_expected_length(header)
    frames = [stored[frame * size : (frame + 1) * size] for frame in range(num_frames)]
    return [frame + b"\0" * (len(frame) % 2) for frame in frames]
