"""Volumes and slides of a source as the images that a sample stores of them, each with its position."""

from dataclasses import dataclass
from pathlib import Path

from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.builder.sources.item import Item
from megatron_medx.data.images.deidentify import strip_nifti
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.nifti import is_nifti, nifti_parts
from megatron_medx.data.images.slides import read_slide
from megatron_medx.data.images.volumes import choose_slices, position_text, read_volume
from megatron_medx.data.samples import ImagePart, StackPart


@dataclass(frozen=True, slots=True)
class Stack:
    """What a volume or slide became."""

    images: list[tuple[ImagePart, ImageFile]]
    """Each image's part, whose name has no meaning yet, and its file."""
    num_left_out: int = 0
    """Slices beyond `max_slices`; of a slide it is not known."""
    num_gaps: int = 0
    """Places at which slices seem to be missing."""
    num_localizers: int = 0
    """Scout pictures that are no slices."""
    dropped: tuple[str, ...] = ()
    """Fields of a NIfTI header that its slices do not have any more."""


def open_stack(item: Item, part: StackPart, options: BuildOptions) -> Stack:
    """The images that a volume or slide becomes, at most `max_slices`.

    Raises:
        DataError: a file is missing or no volume or slide can be made of it.
    """
    if part.kind == "slide":
        tiles = read_slide(item.folder / part.path, max_tiles=max(1, options.max_slices - 1))  # beside the overview
        return Stack([(ImagePart(part.path, position=tile.position), tile.file) for tile in tiles])
    files = _volume_files(item, part.path)
    volume = read_volume(files, part.view)
    # slices are made anew; the files of a DICOM series are stripped like any image
    dropped = tuple(strip_nifti(nifti_parts(files[0])[1])[1]) if is_nifti(files[0].content) else ()
    chosen = [volume.slices[k] for k in choose_slices(len(volume.slices), options.max_slices)]
    images = [(ImagePart(part.path, one.view, position_text(one.position_mm)), one.file) for one in chosen]
    return Stack(images, len(volume.slices) - len(chosen), volume.num_gaps, volume.num_localizers, dropped)


def _volume_files(item: Item, name: str) -> list[ImageFile]:
    """A NIfTI file, the files of a folder, or those that the source listed."""
    if name in item.stacks:
        return [item.file(file) for file in item.stacks[name]]
    folder = Path(item.folder / name)
    if not folder.is_dir():
        return [item.file(name)]
    return [item.file(str(Path(name) / file.name)) for file in sorted(folder.iterdir()) if file.is_file()]
