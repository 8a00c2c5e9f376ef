"""Image files of a row as patches, behind one interface: Pillow, the reference, or DALI.

Comes in: the content of files from the shards, and the size the plan has given each image. Goes out: patches for the
row. The build has decoded every image once and decided about burned-in text, so an error here means that bytes or
libraries are not those of the build.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.view import ImageView
from megatron_medx.data.patches import Patcher


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image of a row and the size it is wanted in."""

    file: ImageFile
    view: ImageView
    grid: tuple[int, int, int]
    """(1, rows, columns) of patches that the image is scaled to; both are multiples of the merge size."""


class Decoder(Protocol):
    """Turns image files into patches."""

    def patches(self, requests: Sequence[ImageRequest]) -> list[torch.Tensor]:
        """Patches of each image, (P, C) float32 in merge-block order, on the CPU; P is the product of its grid.

        Raises:
            DataError: an image cannot be decoded. The message names the first such; the next call works.
        """
        ...


@dataclass(slots=True)
class PillowDecoder:
    """The reference: one image after the other, with the readers of `data/images`."""

    patcher: Patcher

    def patches(self, requests: Sequence[ImageRequest]) -> list[torch.Tensor]:
        """As `Decoder.patches`."""
        return [
            self.patcher.patchify(read_image(request.file, request.view, allow_burned_in=True), request.grid)
            for request in requests
        ]
