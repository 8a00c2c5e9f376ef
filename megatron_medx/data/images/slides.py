"""Whole slides as an overview and tiles on tissue, each an image file of its own.

openslide reads the formats of the scanners; it is an optional part of the installation. Labels and other associated
images, which show names, are never read, and no property of the file becomes text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.view import check_pixels
from megatron_medx.data.images.volumes import choose_slices
from megatron_medx.errors import DataError

MASK_PX_PER_TILE = 16
"""Width of a tile in the picture in which tissue is looked for."""

MIN_SATURATION = 20
"""Of 255: difference of the largest and the smallest channel from which a pixel counts as stained. Chosen between the
near white of glass and pale eosin, not measured on a corpus. Unstained, black or white specimens are not found."""

MIN_TISSUE = 0.25
"""Share of stained pixels from which a tile counts as tissue."""

JPEG_QUALITY = 95
"""Of tiles, without chroma subsampling; most scanners have compressed their pixels more than that before."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a slide, or the overview of the whole."""

    file: ImageFile
    """JPEG."""
    position: str
    """Left upper corner, `x 3.2 mm, y 10.4 mm`, from that of the scanned area; empty for the overview."""


def read_slide(path: Path, *, tile_px: int = 1024, mpp: float = 1.0, max_tiles: int = 32) -> list[Tile]:
    """The overview, at most `tile_px` wide and high, then tiles on tissue, evenly chosen in reading order.

    Tiles are squares of `tile_px` (less at the right and lower edge) of a fixed grid, without overlap. Where the file
    does not state the size of its pixels, tiles have the full resolution and positions are in its pixels,
    `x 4096 px, y 0 px`: an invented scale would be worse. A slide is never enlarged. Where there is no tissue, the
    overview stands alone.

    Args:
        path: .svs, .ndpi, .mrxs, pyramidal TIFF or whatever else openslide reads.
        tile_px: side of a tile.
        mpp: micrometers a pixel of a tile; 0.25 to 0.5 shows nuclei, 1 glands.
        max_tiles: most tiles beside the overview.

    Raises:
        DataError: openslide is not installed, there is no such file, it is no slide or broken, or it holds a single
            resolution too large to make an overview of.
    """
    openslide = _openslide()
    if not Path(path).is_file():
        ImageFile.of(path)  # its error says the rest
    with _errors_named(openslide, path), openslide.OpenSlide(path) as slide:
        check_pixels(str(path), *slide.level_dimensions[-1])
        grid = _Grid.of(slide, openslide, tile_px, mpp)
        stem = str(Path(path).with_suffix(""))
        overview = grid.region(slide, str(path), (0, 0), grid.size, (tile_px, tile_px))
        tiles = [Tile(_jpeg(f"{stem}.overview.jpg", overview), "")]
        corners = grid.on_tissue(slide, str(path))
        for index, chosen in enumerate(choose_slices(len(corners), max_tiles)):
            image = grid.region(slide, str(path), corners[chosen], (grid.tile,) * 2, (tile_px, tile_px))
            tiles.append(Tile(_jpeg(f"{stem}.tile-{index}.jpg", image), grid.position(corners[chosen])))
    return tiles


@dataclass(frozen=True, slots=True)
class _Grid:
    """The tiles of a slide, in px of its full resolution."""

    origin: tuple[int, int]
    """Left upper corner of the scanned area."""
    size: tuple[int, int]
    """Its width and height."""
    tile: float
    """Side of a tile."""
    mpp: tuple[float, float] | None
    """Micrometers a px, to the right and down; None where the file does not say."""

    @classmethod
    def of(cls, slide: Any, openslide: Any, tile_px: int, mpp: float) -> "_Grid":
        known = slide.properties
        bounds = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
        x, y, width, height = (int(known[name]) if name in known else None for name in bounds)
        size = (width, height) if width and height else slide.dimensions
        stated = known.get(openslide.PROPERTY_NAME_MPP_X), known.get(openslide.PROPERTY_NAME_MPP_Y)
        scale = (float(stated[0]), float(stated[1])) if all(stated) else None
        enlarged = max(1.0, mpp / scale[0]) if scale else 1.0
        return cls((x or 0, y or 0), size, tile_px * enlarged, scale)

    def on_tissue(self, slide: Any, name: str) -> list[tuple[int, int]]:
        """Corners of the tiles that show tissue, in reading order."""
        columns, rows = (int(np.ceil(side / self.tile)) for side in self.size)
        mask_px = columns * MASK_PX_PER_TILE, rows * MASK_PX_PER_TILE
        whole = (columns * self.tile, rows * self.tile)
        seen = np.asarray(self.region(slide, name, (0, 0), whole, mask_px, exact=True)).astype(np.int16)
        stained = seen.max(axis=-1) - seen.min(axis=-1) >= MIN_SATURATION
        share = stained.reshape(rows, MASK_PX_PER_TILE, columns, MASK_PX_PER_TILE).mean(axis=(1, 3))
        return [(int(column * self.tile), int(row * self.tile)) for row, column in np.argwhere(share >= MIN_TISSUE)]

    def region(
        self,
        slide: Any,
        name: str,
        corner: tuple[int, int],
        size: tuple[float, float],
        most_px: tuple[int, int],
        exact: bool = False,
    ) -> Image.Image:
        """A part of the scanned area as RGB, over white, reduced so that it fits `most_px`.

        Args:
            slide: the open slide.
            name: what errors call it.
            corner: its left upper corner in the area.
            size: its width and height; what lies beyond the area is cut, or white if `exact`.
            most_px: most width and height of the picture; all of it is filled if `exact`, whatever its aspect.
            exact: see the others.
        """
        cut = size if exact else [min(side, end - at) for side, end, at in zip(size, self.size, corner, strict=True)]
        reduction = max(1.0, *(side / px for side, px in zip(cut, most_px, strict=True)))
        level = slide.get_best_level_for_downsample(reduction)
        step = slide.level_downsamples[level]
        stored_px = [max(1, round(side / step)) for side in cut]
        check_pixels(name, *stored_px)
        at = tuple(start + offset for start, offset in zip(self.origin, corner, strict=True))
        stored = slide.read_region(at, level, stored_px)
        image = Image.new("RGB", stored.size, "white")
        image.paste(stored, mask=stored.getchannel("A"))
        target = most_px if exact else [max(1, round(side / reduction)) for side in cut]
        return image if image.size == tuple(target) else image.resize(target, Image.Resampling.LANCZOS)

    def position(self, corner: tuple[int, int]) -> str:
        """Text of a tile's place."""
        if self.mpp is None:
            return f"x {corner[0]} px, y {corner[1]} px"
        x, y = (at * mpp / 1000 for at, mpp in zip(corner, self.mpp, strict=True))
        return f"x {x:.1f} mm, y {y:.1f} mm"


def _openslide() -> Any:
    try:
        import openslide
    except ImportError as error:  # of the package or of the library behind it
        raise DataError(
            f"a slide, but openslide cannot be imported ({error})",
            "the optional part of the installation that reads slides",
            "pip install 'megatron-medx[slides]'",
        ) from error
    return openslide


@contextmanager
def _errors_named(openslide: Any, path: Path) -> Iterator[None]:
    try:
        yield
    except (openslide.OpenSlideError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as a slide ({type(error).__name__}: {error or 'no reason given'})",
            "a whole file of a format that openslide reads",
            "copy the file again, or take its sample out; a plain picture is an image part, not a slide",
        ) from error


def _jpeg(name: str, image: Image.Image) -> ImageFile:
    content = BytesIO()
    image.save(content, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return ImageFile(name, content.getvalue())
