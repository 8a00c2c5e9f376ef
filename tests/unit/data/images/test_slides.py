"""Overview and tiles of whole slides, out of pyramids that the tests draw."""

import sys
from io import BytesIO

import numpy as np
import pytest
import tifffile
from PIL import Image

from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.slides import read_slide
from megatron_medx.errors import DataError

pytest.importorskip("openslide")

PINK = (220, 120, 170)
GLASS = (243, 242, 240)


def write_slide(path, pixels, mpp=0.5, levels=3):
    """A tiled TIFF pyramid of (H, W, 3) uint8, each level half of the one before."""
    resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            step = 2**level
            shrunk = Image.fromarray(pixels).resize(
                (pixels.shape[1] // step, pixels.shape[0] // step), Image.Resampling.BOX
            )
            file.write(np.asarray(shrunk), tile=(64, 64), photometric="rgb", subfiletype=int(level > 0), **resolution)
    return path


def tissue_slide():
    """1200 x 800 px of glass with a piece of tissue at x 400 to 1000, y 200 to 600, shaded to tell its places."""
    pixels = np.full((800, 1200, 3), GLASS, dtype=np.uint8)
    rows, columns = np.mgrid[200:600, 400:1000]
    pixels[200:600, 400:1000] = PINK
    pixels[200:600, 400:1000, 1] = columns // 8
    pixels[200:600, 400:1000, 2] = 140 + rows // 6
    return pixels


def pixels_of(tile):
    return np.asarray(read_image(tile.file)).astype(int)


def test_tiles_lie_on_tissue_at_the_asked_resolution(tmp_path):
    # 0.5 um a px asked as 1: tiles of 100 px cover 200 px, which is 0.1 mm
    slide = tissue_slide()
    overview, *tiles = read_slide(write_slide(tmp_path / "a.tif", slide), tile_px=100)
    assert overview.position == "" and overview.file.name.endswith("a.overview.jpg")
    assert pixels_of(overview).shape == (67, 100, 3)
    corners = [(x, y) for y in (200, 400) for x in (400, 600, 800)]
    assert [tile.position for tile in tiles] == [f"x {x / 2000:.1f} mm, y {y / 2000:.1f} mm" for x, y in corners]
    for tile, (x, y) in zip(tiles, corners, strict=True):
        expected = slide[y : y + 200, x : x + 200].reshape(100, 2, 100, 2, 3).mean(axis=(1, 3))
        assert np.abs(pixels_of(tile) - expected).mean() < 2  # measured: 0.7, of JPEG


def test_tiles_are_chosen_evenly_and_stay_at_the_stored_resolution(tmp_path):
    path = write_slide(tmp_path / "a.tif", tissue_slide(), mpp=2)
    _, *tiles = read_slide(path, tile_px=200, max_tiles=2)
    assert [tile.position for tile in tiles] == ["x 0.8 mm, y 0.4 mm", "x 1.6 mm, y 0.8 mm"]
    assert all(pixels_of(tile).shape == (200, 200, 3) for tile in tiles)


def test_tiles_at_the_edge_are_cut(tmp_path):
    pixels = np.full((300, 500, 3), PINK, dtype=np.uint8)
    _, *tiles = read_slide(write_slide(tmp_path / "a.tif", pixels, mpp=1), tile_px=200)
    shapes = [pixels_of(tile).shape[:2] for tile in tiles]
    # the corner of 100 x 100 px is a quarter of a tile
    assert shapes == [(200, 200), (200, 200), (200, 100), (100, 200), (100, 200), (100, 100)]
    assert all(np.abs(pixels_of(tile) - PINK).max() <= 3 for tile in tiles)


def test_slides_without_a_scale_are_read_in_their_pixels(tmp_path):
    _, *tiles = read_slide(write_slide(tmp_path / "a.tif", tissue_slide(), mpp=None), tile_px=200)
    assert [tile.position for tile in tiles][:2] == ["x 400 px, y 200 px", "x 600 px, y 200 px"]


def test_glass_has_an_overview_alone(tmp_path):
    tiles = read_slide(write_slide(tmp_path / "a.tif", np.full((300, 500, 3), GLASS, dtype=np.uint8)))
    assert [tile.position for tile in tiles] == [""]


def test_what_is_no_slide_is_named(tmp_path, monkeypatch):
    (tmp_path / "text.svs").write_text("not a slide")
    with pytest.raises(DataError, match=r"text\.svs cannot be read as a slide \(OpenSlideUnsupportedFormatError"):
        read_slide(tmp_path / "text.svs")
    with pytest.raises(DataError, match=r"no image file .*gone\.svs"):
        read_slide(tmp_path / "gone.svs")
    cut = write_slide(tmp_path / "cut.tif", np.random.default_rng(3).integers(0, 255, (800, 900, 3), dtype=np.uint8))
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.tif cannot be read as a slide"):
        read_slide(cut)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(DataError, match=r"pip install 'megatron-medx\[slides\]'"):
        read_slide(tmp_path / "text.svs")


def test_one_resolution_too_large_for_an_overview_is_refused(tmp_path, monkeypatch):
    path = write_slide(tmp_path / "flat.tif", tissue_slide(), levels=1)
    monkeypatch.setattr("megatron_medx.data.images.view.MAX_PIXELS", 900_000)
    with pytest.raises(DataError, match=r"flat\.tif: its header promises 1200 x 800 px"):
        read_slide(path)


def test_tiles_hold_nothing_but_pixels(tmp_path):
    path = tmp_path / "doe_jane.tif"
    tifffile.imwrite(path, tissue_slide(), tile=(64, 64), photometric="rgb", description="Doe Jane")
    for tile in read_slide(path, tile_px=200):
        assert isinstance(tile.file, ImageFile) and b"Jane" not in tile.file.content
        with Image.open(BytesIO(tile.file.content)) as image:
            assert not image.getexif() and image.format == "JPEG"
