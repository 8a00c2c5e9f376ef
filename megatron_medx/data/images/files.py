"""Image files as 8-bit RGB pictures, whatever they are stored as.

Comes in: a path from a sample and the view it asks for. Goes out: a PIL picture for `patches.py`, or only its size for
the plan. What a file is, its content decides, not its suffix: PACS exports often have none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from megatron_medx.data.images.dicom import dicom_size, is_dicom, read_dicom
from megatron_medx.data.images.view import AS_STORED, ImageView, check_frame, check_pixels, too_many_pixels
from megatron_medx.data.images.windows import check_hu, percentile_window, to_8bit
from megatron_medx.errors import DataError

DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""PIL modes with more than 8 bits a channel; all are gray."""

DEEP_GRAY_ALPHA = "LA;16B"
"""How Pillow's decoder names a PNG of 16-bit gray with transparency, of which it would keep 8 bits."""

EXIF_ORIENTATION = 0x0112
"""EXIF tag; the values 5 to 8 turn the picture by a quarter, which swaps width and height."""


def read_image(path: Path, view: ImageView = AS_STORED, allow_burned_in: bool = False) -> Image.Image:
    """Decode a PNG, JPEG, TIFF or DICOM file to an upright 8-bit RGB picture.

    Gray of more than 8 bits: DICOM by its window or those of the view, others by percentiles (a PNG stores no window);
    a TIFF whose 0 is white is inverted. Color of 16 bits keeps the top 8, as color has no window. CMYK and palettes
    become RGB; transparency is dropped, as Qwen3-VL's image processor drops it.

    Raises:
        DataError: the file is missing, empty, cut short or of no kind that can be read; it promises more pixels than
            MAX_PIXELS; it has no such frame; windows in HU are asked of what is not in HU; its header says
            that text is burned in, which is not allowed. The message names it.
    """
    with _errors_named(path):
        if is_dicom(path):
            return read_dicom(path, view, allow_burned_in)
        with Image.open(path) as image:
            _seek(image, path, view)
            white_is_0 = getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
            image.load()
            upright = ImageOps.exif_transpose(image)
        if upright.mode in DEEP_MODES:
            shown = percentile_window(np.asarray(upright))
            return Image.fromarray(to_8bit(1 - shown if white_is_0 else shown)).convert("RGB")
        return upright.convert("RGB")


def image_size(path: Path, view: ImageView = AS_STORED, allow_burned_in: bool = False) -> tuple[int, int]:
    """Width and height in px of what `read_image` returns, from the header alone.

    Raises:
        DataError: as `read_image`, as far as the header can tell.
    """
    with _errors_named(path):
        if is_dicom(path):
            return dicom_size(path, view, allow_burned_in)
        with Image.open(path) as image:
            _seek(image, path, view)
            width, height = image.size
            quarter_turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
        return (height, width) if quarter_turned else (width, height)


def _seek(image: Image.Image, path: Path, view: ImageView) -> None:
    """Go to the view's frame and check what its header promises; nothing is decoded yet."""
    check_hu("", "", view.windows, str(path))
    if view.frame:
        check_frame(path, view.frame, getattr(image, "n_frames", 1))
        image.seek(view.frame)
    check_pixels(path, *image.size)
    if any(tile.args == DEEP_GRAY_ALPHA for tile in image.tile):
        raise DataError(
            f"{path}: 16-bit gray with transparency",
            "16-bit gray alone: of the two together the decoder would keep 8 bits",
            "save it without the transparency",
        )


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Whatever is raised inside becomes a DataError that names `path`."""
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise too_many_pixels(path, "more than twice as many pixels as are allowed") from error
    except Exception as error:  # decoders raise anything from OSError to struct.error on broken bytes
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"no image file {path}",
            "every image a sample names, relative to the data folder",
            "copy the file there, or take the sample out of samples.jsonl",
        )
    if path.is_file() and not path.stat().st_size:
        found = f"{path} is empty (0 bytes)"
    elif isinstance(error, UnidentifiedImageError):
        found = f"{path} cannot be read as an image: no decoder knows it; it begins with {_first_bytes(path)!r}"
    else:
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        found = f"{path} cannot be read as an image ({type(error).__name__}: {reason})"
    return DataError(
        found,
        "a whole PNG, JPEG, TIFF or DICOM file",
        "copy the file again or take its sample out; data.max_bad_fraction above 0 skips and counts such samples",
    )


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(12)
