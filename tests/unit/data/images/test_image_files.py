"""Pictures out of PNG, JPEG and TIFF files: depth, color, orientation, frames, and files that are none."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from transformers.image_transforms import convert_to_rgb

from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.view import MAX_PIXELS, ImageView
from megatron_medx.errors import DataError

COLOR = {"gray": 0, "rgb": 2, "gray_alpha": 4}
"""Color types of a PNG header."""


def write_png(path, values, color, size=None):
    """A PNG of 16-bit values (H, W, channels), which Pillow cannot write; its header may promise another size."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    width, height = size or (values.shape[1], values.shape[0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, COLOR[color], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


RAMP = (np.arange(1000, dtype=np.uint16).reshape(20, 50) * 40) + 5000


def pixels(path, view=None):
    file = ImageFile.of(path)
    image = read_image(file, view) if view else read_image(file)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_gray_keeps_its_range(tmp_path, suffix):
    # 8 bits of the stored 16 would show 177 levels, from 19 to 175
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RAMP).save(path)
    shown = pixels(path)[:, :, 0]
    assert shown.min() == 0 and shown.max() == 255 and len(np.unique(shown)) == 256
    assert (np.diff(shown.ravel().astype(int)) >= 0).all()


def test_a_tiff_whose_0_is_white_is_inverted(tmp_path):
    black, white = tmp_path / "black.tif", tmp_path / "white.tif"
    Image.fromarray(RAMP).save(black)
    Image.fromarray(RAMP).save(white, tiffinfo={TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 0})
    with Image.open(white) as image:
        assert image.tag_v2[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] == 0  # Pillow wrote what was asked
    assert np.abs(pixels(black).astype(int) + pixels(white) - 255).max() <= 1


def test_a_tiff_of_floats_is_shown_by_percentiles(tmp_path):
    Image.fromarray(np.linspace(-1, 3, 1000, dtype=np.float32).reshape(20, 50)).save(tmp_path / "a.tif")
    shown = pixels(tmp_path / "a.tif")[:, :, 0].ravel()
    assert shown[0] == 0 and shown[-1] == 255 and abs(int(shown[500]) - 128) <= 1


def test_deep_color_keeps_its_top_8_bits(tmp_path):
    values = np.array([[[0x1234, 0xFFFF, 0x00FF], [0x8000, 0x7FFF, 0xABCD]]])
    assert pixels(write_png(tmp_path / "a.png", values, "rgb")).tolist() == (values >> 8).tolist()


def test_deep_gray_with_transparency_is_refused(tmp_path):
    path = write_png(tmp_path / "a.png", np.stack([RAMP, RAMP], axis=-1), "gray_alpha")
    with pytest.raises(DataError, match=r"a\.png: 16-bit gray with transparency"):
        read_image(ImageFile.of(path))


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)  # full magenta and yellow
    assert np.abs(pixels(tmp_path / "a.jpg")[1, 1].astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB"])
def test_what_is_transparent_is_what_the_stock_processor_makes_of_it(tmp_path, mode):
    colors = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    image, options = Image.fromarray(colors), {}
    if mode in ("P", "RGB"):
        image, options = image.convert("RGB").quantize(9).convert(mode), {"transparency": 3}
        options["transparency"] = 3 if mode == "P" else image.getpixel((2, 2))
    else:
        image = image.convert(mode)
    suffix = "tif" if mode == "PA" else "png"
    image.save(tmp_path / f"a.{suffix}", **options)
    with Image.open(tmp_path / f"a.{suffix}") as stored:
        assert stored.mode == mode
        expected = convert_to_rgb(stored, return_numpy=True)
    assert np.array_equal(pixels(tmp_path / f"a.{suffix}"), expected)


def test_palettes_are_looked_up(tmp_path):
    Image.new("RGB", (4, 3), (200, 100, 50)).quantize(4).save(tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").mode == "P"
    assert pixels(tmp_path / "b.png")[2, 3].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[0, 1], [2, 3], [4, 5]]),
        (3, [[5, 4], [3, 2], [1, 0]]),
        (6, [[4, 2, 0], [5, 3, 1]]),
        (8, [[1, 3, 5], [0, 2, 4]]),
    ],
)
def test_pictures_are_upright(tmp_path, orientation, expected):
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(3, 2) * 40)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert (pixels(tmp_path / "a.png")[:, :, 0] // 40).tolist() == expected


def test_frames_of_a_tiff(tmp_path):
    path = tmp_path / "a.tif"
    Image.new("L", (4, 3), 10).save(path, save_all=True, append_images=[Image.new("L", (5, 2), 20)])
    assert pixels(path).shape == (3, 4, 3)
    second = pixels(path, ImageView(frame=1))
    assert second.shape == (2, 5, 3) and (second == 20).all()
    with pytest.raises(DataError, match=r"a\.tif has 2 frames, asked is frame 2"):
        read_image(ImageFile.of(path), ImageView(frame=2))


def test_files_without_frames_and_units(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("L", (4, 3)).save(path)
    with pytest.raises(DataError, match=r"a\.jpg has 1 frame, asked is frame 1"):
        read_image(ImageFile.of(path), ImageView(frame=1))
    with pytest.raises(DataError, match=r"a\.jpg: window lung asked of an image that is not in HU"):
        read_image(ImageFile.of(path), ImageView(("lung",)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("side", "promised"), [(9500, "9500 x 9500 px"), (60000, "more than twice as many pixels as are allowed")]
)
def test_a_header_that_promises_too_much_is_refused_before_decoding(tmp_path, side, promised):
    assert side**2 > MAX_PIXELS
    path = write_png(tmp_path / "bomb.png", RAMP[:, :, None], "gray", size=(side, side))
    with pytest.raises(DataError, match=rf"bomb\.png: its header promises {promised}\n.*at most 89,478,485"):
        read_image(ImageFile.of(path))


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no image file .*gone\.png"):
        ImageFile.of(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"cannot be opened \(IsADirectoryError"):
        ImageFile.of(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    text, cut, empty = (tmp_path / name for name in ("text.png", "cut.png", "empty.png"))
    text.write_text("not an image")
    Image.effect_noise((64, 64), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:900])
    empty.touch()
    for path, reason in (
        (text, r"text\.png cannot be read as an image: no decoder knows it; it begins with b'not an image'"),
        (empty, r"empty\.png is empty \(0 bytes\)"),
    ):
        with pytest.raises(DataError, match=reason):
            read_image(ImageFile.of(path))
    with pytest.raises(DataError, match=r"cut\.png cannot be read as an image \(OSError: .*truncated"):
        read_image(ImageFile.of(cut))
