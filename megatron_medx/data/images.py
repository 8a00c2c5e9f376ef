"""Image files as 8-bit RGB pictures, whatever they are stored as.

Comes in: a path from a sample. Goes out: a PIL picture for `patches.py`, or only its size for the plan.
What a file is, its content decides, not its suffix: PACS exports often have none.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from megatron_medx.data.dicom import dicom_size, is_dicom, percentile_window, read_dicom
from megatron_medx.errors import DataError

DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""PIL modes with more than 8 bits a channel; all are gray."""

EXIF_ORIENTATION = 0x0112
"""EXIF tag; the values 5 to 8 turn the picture by a quarter, which swaps width and height."""


def read_image(path: Path) -> Image.Image:
    """Decode a PNG, JPEG, TIFF or DICOM file to an upright 8-bit RGB picture.

    More than 8 bits: DICOM by its window, others by percentiles (a PNG stores no window). First frame of several.

    Raises:
        DataError: the file is missing, cut short or of no kind that can be read; the message names it.
    """
    try:
        if is_dicom(path):
            return read_dicom(path)
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
        if upright.mode in DEEP_MODES:
            values = percentile_window(np.asarray(upright))
            return Image.fromarray(np.round(values * 255).astype(np.uint8)).convert("RGB")
        return upright.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # decoders raise anything from OSError to struct.error on broken bytes
        raise _unreadable(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in px of what `read_image` returns, from the header alone.

    Raises:
        DataError: the file is missing or its header cannot be read.
    """
    try:
        if is_dicom(path):
            return dicom_size(path)
        with Image.open(path) as image:
            width, height = image.size
            quarter_turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
        return (height, width) if quarter_turned else (width, height)
    except DataError:
        raise
    except Exception as error:  # as above
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"no image file {path}",
            "every image a sample names, relative to the data folder",
            "copy the file there, or take the sample out of samples.jsonl",
        )
    reason = str(error).splitlines()[0] if str(error) else "no reason given"
    return DataError(
        f"{path} cannot be read as an image ({type(error).__name__}: {reason})",
        "a whole PNG, JPEG, TIFF or DICOM file",
        "copy the file again or take its sample out; data.max_bad_fraction above 0 skips and counts such samples",
    )
