"""Pictures as normalized patches, bit for bit those of the stock Qwen image processor (its PIL form).

So training sees what the exported directory computes, on every machine, without torchvision. The stock code chooses
the size of an image by itself; here the plan does, and an image is copied less often on its way.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from megatron_medx.data.image_grid import smart_resize
from megatron_medx.errors import DataError


@dataclass(slots=True)
class Patcher:
    """Turns pictures into patches with the settings of one processor directory."""

    processor: Qwen2VLImageProcessorPil
    """Read for its settings; it computes nothing here."""

    @classmethod
    def from_directory(cls, folder: Path, min_pixels: int, max_pixels: int) -> "Patcher":
        """Patcher with the directory's patch sizes and normalization and the run's area limits (px).

        Raises:
            DataError: no image-processor settings there, or such as prepare images otherwise than Qwen3-VL's.
        """
        path = Path(folder) / "preprocessor_config.json"
        if not path.is_file():
            raise DataError(
                f"no file {path}",
                "a processor directory of the Qwen3-VL family",
                "set data.processor to one; `make demo` builds one at <data.path>/processor",
            )
        size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder, size=size, local_files_only=True)
        needed = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": Image.Resampling.BICUBIC}
        other = {name: getattr(processor, name) for name in needed if getattr(processor, name) != needed[name]}
        if other:
            raise DataError(
                f"{path} sets " + ", ".join(f"{name} to {value}" for name, value in other.items()),
                "images scaled with resample 3 (bicubic), rescaled and normalized",
                "take the preprocessor_config.json of a Qwen3-VL model",
            )
        return cls(processor)

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

    def patchify(self, image: Image.Image, grid: tuple[int, int, int]) -> torch.Tensor:
        """Scale (bicubic), normalize and cut a picture.

        Args:
            image: RGB, as `read_image` gives it.
            grid: (1, rows, columns) of patches; rows and columns are multiples of merge_size.

        Returns:
            pixels_PC: (P, patch_dim) float32 in merge-block order: the four patches of one token stand together.
        """
        settings, (_, rows, columns) = self.processor, grid
        merge, patch = settings.merge_size, settings.patch_size
        assert image.mode == "RGB", f"a picture of mode {image.mode}; read_image gives RGB"
        scaled = np.asarray(image.resize((columns * patch, rows * patch), Image.Resampling.BICUBIC))
        blocks = scaled.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
        # (block row, row in block, y, block column, column in block, x, color) -> (block row, block column, row in
        # block, column in block, color, y, x), while a value is still one byte
        values_P31D = np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, 3, 1, patch * patch)
        # the stock processor's order of operations and dtypes, on which the last bit depends
        normal_P31D = np.empty(values_P31D.shape, np.float32)
        np.multiply(values_P31D, settings.rescale_factor, out=normal_P31D, dtype=np.float64, casting="same_kind")
        normal_P31D -= np.array(settings.image_mean, np.float32)[:, None, None]
        normal_P31D /= np.array(settings.image_std, np.float32)[:, None, None]
        frames_P3TD = np.repeat(normal_P31D, settings.temporal_patch_size, axis=2)  # a still picture fills all frames
        return torch.from_numpy(frames_P3TD.reshape(rows * columns, self.patch_dim))

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
