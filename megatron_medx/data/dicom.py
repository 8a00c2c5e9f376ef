"""DICOM files as 8-bit pictures.

Stored values become physical values (modality LUT), then display values (window or VOI LUT), and only
then 8 bits: a 15-bit radiograph scaled to 8 bits first would lose what its window shows.
The pixel work is pydicom's; this file decides the order and what happens where the header is silent.
"""

from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, pixel_array

from megatron_medx.errors import DataError

PREAMBLE_BYTES = 128
"""A DICOM file starts with 128 free bytes and the letters DICM (PS3.10, section 7.1)."""

WINDOW_PERCENTILES = (0.5, 99.5)
"""Window where none is stored: the whole range but for the few values of burned-in marks and dead pixels."""


def is_dicom(path: Path) -> bool:
    """True where the content, whatever the suffix, is a DICOM file.

    Raises:
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        return file.read(PREAMBLE_BYTES + 4)[PREAMBLE_BYTES:] == b"DICM"


def dicom_size(path: Path) -> tuple[int, int]:
    """Width and height in px from the header; pixels are not read.

    Raises:
        DataError: the file holds no image.
    """
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns", "Modality"])
    if "Rows" not in header or "Columns" not in header:
        raise _no_pixels(path, header)
    return int(header.Columns), int(header.Rows)


def read_dicom(path: Path) -> Image.Image:
    """First frame as an 8-bit RGB picture.

    Color spaces (YBR, palette) become RGB. Of several frames the first is taken; whoever wants more writes one
    file a frame. Pixel aspect ratio and overlays are left alone.

    Raises:
        DataError: the file holds no image.
        Exception: whatever pydicom or a decoder says of broken pixel data; `images.read_image` names the file.
    """
    header = pydicom.dcmread(path)
    if "Rows" not in header or not any(
        name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    ):
        raise _no_pixels(path, header)
    stored = pixel_array(header, index=0)  # YBR arrives here as RGB
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return _palette(stored, header)
    if header.SamplesPerPixel == 3:
        # color has no window: the top 8 of the stored bits
        shift = max(int(header.BitsStored) - 8, 0)
        return Image.fromarray((stored >> shift).astype(np.uint8))
    return Image.fromarray(_to_8bit(_display(stored, header))).convert("RGB")


def percentile_window(values: np.ndarray) -> np.ndarray:
    """Map values of any range to 0..1 (float64) by their 0.5th and 99.5th percentiles; a flat image becomes 0.

    Args:
        values: (H, W) numbers; the percentiles are theirs.
    """
    return _scale(values, values)


def _display(stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Stored values (H, W) -> 0..1, 1 is white, by the window of the header or by percentiles."""
    physical = apply_modality_lut(stored, header)
    if "VOILUTSequence" in header:
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        shown = apply_voi(physical.astype(np.int64), header) / (2.0**bits - 1)
    elif _has_window(header):
        # pydicom maps to the range of the stored bits; asking it for the two ends gives that range exactly
        low, high = apply_windowing(np.array([-1e12, 1e12]), header, index=0)
        shown = (apply_windowing(physical, header, index=0) - low) / (high - low)
    else:
        shown = _scale(physical, _without_padding(stored, physical, header))
    return 1 - shown if header.PhotometricInterpretation == "MONOCHROME1" else shown


def _has_window(header: pydicom.Dataset) -> bool:
    widths = header.get("WindowWidth")
    if widths is None or header.get("WindowCenter") is None:
        return False
    first = widths[0] if isinstance(widths, pydicom.multival.MultiValue) else widths
    return float(first) >= 1


def _without_padding(stored: np.ndarray, physical: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Physical values outside the scanner's padding (0028,0120), which lies far below any measurement."""
    padding = header.get("PixelPaddingValue")
    kept = physical[stored != padding] if isinstance(padding, int) else physical
    return kept if kept.size else physical


def _scale(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    low, high = np.percentile(reference, WINDOW_PERCENTILES)
    if high <= low:
        low, high = float(reference.min()), float(reference.max())
    if high <= low:
        return np.zeros(values.shape)
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)


def _palette(stored: np.ndarray, header: pydicom.Dataset) -> Image.Image:
    colors = apply_color_lut(stored, header)
    bits = 8 * colors.dtype.itemsize
    return Image.fromarray((colors >> (bits - 8)).astype(np.uint8))


def _to_8bit(shown: np.ndarray) -> np.ndarray:
    return np.round(np.clip(shown, 0, 1) * 255).astype(np.uint8)


def _no_pixels(path: Path, header: pydicom.Dataset) -> DataError:
    kind = f"of modality {header.Modality} " if "Modality" in header else ""
    return DataError(
        f"{path}: a DICOM file {kind}without pixel data; it is no image, or cut short",
        "a whole DICOM image",
        "copy the file again, or take the sample out",
    )
