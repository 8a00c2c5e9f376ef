"""DICOM files as 8-bit pictures: physical values by the modality LUT, a window or VOI LUT, 8 bits, then the turn.

The pixel work is pydicom's; this file decides the order and what happens where the header is silent.
"""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, pixel_array

from megatron_medx.data.images.frames import PIXEL_FIELDS
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.orientation import DIRECTIONS, turn_of, turned
from megatron_medx.data.images.view import ImageView, check_frame, check_pixels
from megatron_medx.data.images.windows import PhysicalImage, check_hu, named_windows, percentile_window, to_8bit
from megatron_medx.errors import DataError

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
"""Files of hospitals break rules that do not matter here, such as that of identifiers: warnings would help nobody."""

PREAMBLE_BYTES = 128
"""A DICOM file starts with 128 free bytes and the letters DICM (PS3.10, section 7.1)."""

GROUPS = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
"""Where enhanced files keep what other files keep in the header; what is said of a frame counts above the shared."""

FRAME_MACROS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PlaneOrientationSequence",
    "PlanePositionSequence",
)
"""Of these groups: rescale, window, orientation and position."""

PLANE_FIELDS = ["Modality", "ImageOrientationPatient", "PatientOrientation"]

PROJECTIONS = ("CR", "DX")
"""Modalities whose PatientOrientation is followed; mammograms, say, are hung by conventions of their own."""


def is_dicom(content: bytes) -> bool:
    """True where the content, whatever the file's suffix, is a DICOM file."""
    return content[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == b"DICM"


def read_dicom(file: ImageFile, view: ImageView, allow_burned_in: bool) -> Image.Image:
    """One frame as an 8-bit RGB picture, upright.

    Color spaces (YBR, palette) become RGB. Named windows show high HU bright, whatever PhotometricInterpretation says
    of the file's own window. Pixel aspect ratio and overlays are left alone.

    Axial, coronal and sagittal planes are turned to the radiological convention (`orientation.PLANES`) where the header
    says how they lie: by ImageOrientationPatient, in CR and DX without it by PatientOrientation, such as L\\F.

    Raises:
        DataError: the file holds no image, not what the view asks for, or burned-in text that is not allowed.
        Exception: whatever pydicom or a decoder says of broken pixel data; `files.read_image` names the file.
    """
    header = pydicom.dcmread(BytesIO(file.content))
    _check(file.name, header, view, allow_burned_in)
    if not any(field in header for field in PIXEL_FIELDS):
        raise _no_pixels(file.name, header)
    check_hu(*_unit(header), view.windows, file.name)
    return turned(_picture(header, view, file.name), _turn(header))


def directions(header: pydicom.Dataset) -> tuple[Sequence[float], Sequence[float]] | None:
    """Where a picture's columns and rows run in the patient: two vectors (3,) for `orientation`, or None if unsaid."""
    cosines = header.get("ImageOrientationPatient")
    if cosines is not None and len(cosines) == 6:
        return [float(x) for x in cosines[:3]], [float(x) for x in cosines[3:]]
    letters = header.get("PatientOrientation")
    if header.get("Modality") in PROJECTIONS and isinstance(letters, pydicom.multival.MultiValue) and len(letters) == 2:
        vectors = [DIRECTIONS.get(letter[:1]) for letter in letters]  # of "LF" the first says where it mostly runs
        return None if None in vectors else (vectors[0], vectors[1])
    return None


def lay_frame(header: pydicom.Dataset, frame: int) -> None:
    """Lay a frame's rescale, window, orientation and position on `header`, where files of one frame have them."""
    shared, per_frame = (header.get(field) or [] for field in GROUPS)
    for group in [*shared[:1], *per_frame[frame : frame + 1]]:
        for macro in FRAME_MACROS:
            for item in group.get(macro, [])[:1]:
                header.update(item)


def _turn(header: pydicom.Dataset) -> Image.Transpose | None:
    known = directions(header)
    return turn_of(*known) if known else None


def _picture(header: pydicom.Dataset, view: ImageView, name: str) -> Image.Image:
    """The frame as stored, 8-bit RGB; `header` holds its pixels and, from its functional groups, its window."""
    stored = pixel_array(header, index=view.frame)  # YBR arrives here as RGB
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return _palette(stored, header)
    if header.SamplesPerPixel == 3:
        # color has no window: the top 8 of the stored bits
        shift = max(int(header.BitsStored) - 8, 0)
        return Image.fromarray((stored >> shift).astype(np.uint8))
    physical = PhysicalImage(apply_modality_lut(stored, header).astype(np.float64), *_unit(header))
    if view.windows:
        return Image.fromarray(named_windows(physical, view.windows, name))
    return Image.fromarray(to_8bit(_display(stored, physical, header))).convert("RGB")


def _check(name: str, header: pydicom.Dataset, view: ImageView, allow_burned_in: bool) -> None:
    """Refuse what is no image, names a person, is too large or lacks the frame.

    Then lay on `header` what its functional groups say of the frame.
    """
    if "Rows" not in header or "Columns" not in header:
        raise _no_pixels(name, header)
    if header.get("BurnedInAnnotation") == "YES" and not allow_burned_in:
        raise DataError(
            f"{name}: BurnedInAnnotation is YES, so its pixels may show a name",
            "pictures that identify nobody",
            "take the text out of the picture, or set data.allow_burned_in=true if what is burned in identifies nobody",
        )
    check_pixels(name, int(header.Columns), int(header.Rows))
    check_frame(name, view.frame, int(header.get("NumberOfFrames") or 1))
    lay_frame(header, view.frame)


def _unit(header: pydicom.Dataset) -> tuple[str, str]:
    """Unit of the values behind the modality LUT, and the field that says so; two empty texts where none is known."""
    if header.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        return "", ""
    if "ModalityLUTSequence" in header:
        unit, source = header.ModalityLUTSequence[0].get("ModalityLUTType"), "ModalityLUTType"
    else:
        unit, source = header.get("RescaleType"), "RescaleType"
        rescaled = "RescaleSlope" in header and "RescaleIntercept" in header
        slice_of_ct = header.get("Modality") == "CT" and "LOCALIZER" not in (header.get("ImageType") or [])
        if not unit and rescaled and slice_of_ct:
            return "HU", "Modality"  # a CT must name its unit only where it is another
    return ("", "") if unit in (None, "", "US") else (str(unit), source)  # US is DICOM's word for unspecified


def _display(stored: np.ndarray, physical: PhysicalImage, header: pydicom.Dataset) -> np.ndarray:
    """Stored and physical values (H, W) -> 0..1, 1 is white, by the window of the header or by percentiles."""
    values = physical.values_HW
    if "VOILUTSequence" in header:
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        shown = apply_voi(values.astype(np.int64), header) / (2.0**bits - 1)
    elif _has_window(header):
        # pydicom maps to the range of the stored bits; asking it for the two ends gives that range exactly
        low, high = apply_windowing(np.array([-1e12, 1e12]), header, index=0)
        shown = (apply_windowing(values, header, index=0) - low) / (high - low)
    else:
        shown = percentile_window(values, _without_padding(stored, values, header))
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


def _palette(stored: np.ndarray, header: pydicom.Dataset) -> Image.Image:
    colors = apply_color_lut(stored, header)
    bits = 8 * colors.dtype.itemsize
    return Image.fromarray((colors >> (bits - 8)).astype(np.uint8))


def _no_pixels(name: str, header: pydicom.Dataset) -> DataError:
    kind = f"of modality {header.Modality} " if "Modality" in header else ""
    return DataError(
        f"{name}: a DICOM file {kind}without pixel data; it is no image, or cut short",
        "a whole DICOM image",
        "copy the file again, or take the sample out",
    )
