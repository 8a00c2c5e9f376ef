"""Pictures as normalized patches, and the arithmetic that says how many without decoding one.

The pixels are the stock Qwen image processor's work (its PIL form: same result on every machine, no torchvision),
so training sees what the exported directory computes. The sizes are ours, tested against it.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

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


def num_image_tokens(grid: tuple[int, int, int], merge_size: int) -> int:
    """Tokens of the decoder that a (frames, height, width) grid of patches becomes."""
    frames, height, width = grid
    return frames * height * width // merge_size**2


@dataclass(slots=True)
class Patcher:
    """Turns pictures into patches with the settings of one processor directory."""

    processor: Qwen2VLImageProcessorPil

    @classmethod
    def from_directory(cls, folder: Path, min_pixels: int, max_pixels: int) -> "Patcher":
        """Patcher with the directory's patch sizes and normalization and the run's area limits (px).

        Raises:
            DataError: no image-processor settings there.
        """
        path = Path(folder) / "preprocessor_config.json"
        if not path.is_file():
            raise DataError(
                f"no file {path}",
                "a processor directory of the Qwen3-VL family",
                "set data.processor to one; `make demo` builds one at <data.path>/processor",
            )
        size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
        return cls(Qwen2VLImageProcessorPil.from_pretrained(folder, size=size, local_files_only=True))

    @property
    def merge_size(self) -> int:
        """A merge_size x merge_size block of patches is one token."""
        return self.processor.merge_size

    @property
    def patch_dim(self) -> int:
        """Values in one patch: 3 colors x frames x height x width."""
        return 3 * self.processor.temporal_patch_size * self.processor.patch_size**2

    def grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Patches along (frames, height, width) of an image of that size in px.

        Raises:
            DataError: the sides differ too much.
        """
        patch_size, size = self.processor.patch_size, self.processor.size
        tall, wide = smart_resize(
            height, width, patch_size * self.merge_size, size["shortest_edge"], size["longest_edge"]
        )
        return 1, tall // patch_size, wide // patch_size

    def patchify(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (bicubic), normalize and cut a picture.

        Returns:
            pixels_PC: (P, patch_dim) float32 in merge-block order: the four patches of one token stand together.
            grid_3: (3,) int64 patches along (frames, height, width); P is their product.
        """
        features = self.processor(images=image, return_tensors="np")
        pixels = np.ascontiguousarray(features["pixel_values"], dtype=np.float32)
        return torch.from_numpy(pixels), torch.from_numpy(features["image_grid_thw"][0].astype(np.int64))

    def unpatchify(self, pixels_PC: torch.Tensor, grid_3: torch.Tensor) -> Image.Image:
        """Put normalized patches back into a picture (first frame of each pair), as the model sees it."""
        settings = self.processor
        height, width = int(grid_3[1]), int(grid_3[2])
        merge, patch = settings.merge_size, settings.patch_size
        blocks = pixels_PC.reshape(
            height // merge, width // merge, merge, merge, 3, settings.temporal_patch_size, patch, patch
        )
        # (block row, block column, row in block, column in block, color, frame, y, x) -> (y, x, color)
        picture = blocks[:, :, :, :, :, 0].permute(0, 2, 5, 1, 3, 6, 4).reshape(height * patch, width * patch, 3)
        values = picture * torch.tensor(settings.image_std) + torch.tensor(settings.image_mean)
        return Image.fromarray((values * 255).round().clamp(0, 255).to(torch.uint8).numpy())
