"""How many patches and tokens an image becomes, from its size alone: nothing is decoded, and torch is not needed."""

import math

from megatron_medx.errors import DataError

MAX_ASPECT = 200
"""Longest side over shortest; the stock processor refuses more."""


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width in px that an image is scaled to: multiples of `factor`, area within limits, shape nearly kept.

    Args:
        height: of the image, px.
        width: of the image, px.
        factor: patch_size x merge_size, px.
        min_pixels: smallest area, px.
        max_pixels: largest area, px.

    Example (factor 32, limits 65,536 and 16,777,216): 100 x 70 has 7,000 px, too few, so both sides grow by
    sqrt(65536 / 7000) = 3.06 and up to the next multiple: 306 -> 320, 214 -> 224.

    Raises:
        DataError: one side is more than 200 times the other.
    Source: transformers 5.23 `qwen2_vl.image_processing_pil_qwen2_vl.smart_resize` (tests/unit/data/test_patches.py).
    """
    if min(height, width) < 1 or max(height, width) / min(height, width) > MAX_ASPECT:
        raise DataError(
            f"an image of {width} x {height} px",
            f"sides of at least 1 px that differ at most {MAX_ASPECT}-fold",
            "cut the image into pieces or take the sample out",
        )
    tall = round(height / factor) * factor
    wide = round(width / factor) * factor
    if tall * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        tall = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return tall, wide


def image_tokens(width: int, height: int, settings: dict) -> int:
    """Tokens of the decoder that an image becomes under the limits of area of a processor.

    Args:
        width, height: of the image, px.
        settings: of its preprocessor_config.json.

    Raises:
        DataError: one side is more than 200 times the other.
    """
    side = settings["patch_size"] * settings["merge_size"]
    limits = settings["size"]
    tall, wide = smart_resize(height, width, side, limits["shortest_edge"], limits["longest_edge"])
    return tall // side * (wide // side)


def num_image_tokens(grid: tuple[int, int, int], merge_size: int) -> int:
    """Tokens of the decoder that a (frames, height, width) grid of patches becomes."""
    frames, height, width = grid
    return frames * height * width // merge_size**2
