"""Image files as 8-bit RGB pictures, whatever they are stored as.

Comes in: the content of a file and the view a sample asks for. Goes out: a PIL picture for `patches.py`. What a file
is, its content decides, not its suffix: PACS exports often have none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from megatron_medx.data.images.dicom import is_dicom, read_dicom
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.nifti import is_nifti, read_nifti
from megatron_medx.data.images.view import AS_STORED, ImageView, check_frame, check_pixels, too_many_pixels
from megatron_medx.data.images.windows import check_hu, percentile_window, to_8bit
from megatron_medx.errors import DataError

DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""PIL modes with more than 8 bits a channel; all are gray."""

DEEP_GRAY_ALPHA = "LA;16B"
"""How Pillow's decoder names a PNG of 16-bit gray with transparency, of which it would keep 8 bits."""


def read_image(file: ImageFile, view: ImageView = AS_STORED, allow_burned_in: bool = False) -> Image.Image:
    """Decode a PNG, JPEG, TIFF, DICOM or NIfTI file to an upright 8-bit RGB picture.

    Gray of more than 8 bits: DICOM by its window or those of the view, NIfTI by those of the view, all others, and
    where there is none, by percentiles (a PNG stores no window); a TIFF whose 0 is white is inverted. Color of 16 bits
    keeps the top 8, as color has no window. CMYK and palettes become RGB; what is transparent becomes white, as in
    Qwen3-VL's image processor (transformers 5.23).

    Raises:
        DataError: the file is empty, cut short or of no kind that can be read; it promises more pixels than
            MAX_PIXELS; it has no such frame; windows in HU are asked of what is not in HU; its header says
            that text is burned in, which is not allowed. The message names it.
    """
    with errors_named(file):
        if is_dicom(file.content):
            return read_dicom(file, view, allow_burned_in)
        if is_nifti(file.content):
            return read_nifti(file, view)
        with Image.open(BytesIO(file.content)) as image:
            _seek(image, file.name, view)
            white_is_0 = getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
            image.load()
            upright = ImageOps.exif_transpose(image)
        if upright.mode in DEEP_MODES:
            shown = percentile_window(np.asarray(upright))
            return Image.fromarray(to_8bit(1 - shown if white_is_0 else shown)).convert("RGB")
        if "A" in upright.getbands() or upright.info.get("transparency") is not None:
            seen = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
        return upright.convert("RGB")


def _seek(image: Image.Image, name: str, view: ImageView) -> None:
    """Go to the view's frame and check what its header promises; nothing is decoded yet."""
    check_hu("", "", view.windows, name)
    if view.frame:
        check_frame(name, view.frame, getattr(image, "n_frames", 1))
        image.seek(view.frame)
    check_pixels(name, *image.size)
    if any(tile.args == DEEP_GRAY_ALPHA for tile in image.tile):
        raise DataError(
            f"{name}: 16-bit gray with transparency",
            "16-bit gray alone: of the two together the decoder would keep 8 bits",
            "save it without the transparency",
        )


@contextmanager
def errors_named(file: ImageFile) -> Iterator[None]:
    """Whatever is raised inside becomes a DataError that names `file`."""
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise too_many_pixels(file.name, "more than twice as many pixels as are allowed") from error
    except Exception as error:  # decoders raise anything from OSError to struct.error on broken bytes
        raise _unreadable(file, error) from error


def _unreadable(file: ImageFile, error: Exception) -> DataError:
    if not file.content:
        found = f"{file.name} is empty (0 bytes)"
    elif isinstance(error, UnidentifiedImageError):
        found = f"{file.name} cannot be read as an image: no decoder knows it; it begins with {file.content[:12]!r}"
    else:
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        found = f"{file.name} cannot be read as an image ({type(error).__name__}: {reason})"
    return DataError(
        found,
        "a whole PNG, JPEG, TIFF, DICOM or NIfTI file",
        "copy the file again or take its sample out; data.max_bad_fraction above 0 skips and counts such samples",
    )
