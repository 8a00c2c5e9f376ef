"""Decoding by NVIDIA DALI: threads of its own, and nvJPEG where there is a GPU.

DALI is fed only with what it was proved to decode as Pillow does, bit for bit (tests/unit/data/test_dali.py): upright,
opaque JPEG, PNG and WebP of 8 bits. Everything else (DICOM, 16 bits, CMYK, transparency, EXIF orientations, frames) is
decoded by `read_image` and enters as pixels, so that all images of a row are scaled, normalized and cut by one graph.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from PIL import ExifTags, Image

from megatron_medx.data.decoding import ImageRequest
from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.view import AS_STORED, MAX_PIXELS
from megatron_medx.data.patches import Patcher
from megatron_medx.errors import ConfigError

DALI_MODES = {"JPEG": ("L", "RGB"), "PNG": ("1", "L", "P", "RGB"), "WEBP": ("RGB",)}
"""Format -> modes, both as Pillow calls them. CMYK JPEGs are one gray level off in DALI 2.4 (measured)."""

PNG_ORIENTATIONS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""Where a PNG may say that it is turned; Pillow would decode the whole file to tell."""

MAX_IMAGES = 64
"""Images that go through the graph at once."""

MAX_BATCH_PIXELS = 2**25
"""Decoded pixels of the images that go through the graph at once, 100 MB as RGB; a larger image goes alone."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Source:
    """An image on its way into the graph: the content of its file, or its pixels."""

    request: ImageRequest
    num_pixels: int
    pixels_HW3: np.ndarray | None = None
    """(H, W, 3) uint8; None where DALI decodes the file."""


class DaliDecoder:
    """A `Decoder` that keeps one DALI pipeline. Not for several threads at once.

    Decodes on the GPU that is torch's current device when the decoder is made, so make it after
    `torch.cuda.set_device`; on the CPU where there is no GPU. The pipeline is made by the first call, in the process
    that decodes, for it survives no fork.

    Args:
        patcher: the settings of the processor directory.
        num_threads: of DALI; None means the processor cores this process may use, shared with the other ranks of
            the machine where torchrun says how many there are.
    """

    def __init__(self, patcher: Patcher, num_threads: int | None = None):
        self.patcher = patcher
        self.num_threads = num_threads or _cores_per_rank()
        self.device_id = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._made_by = os.getpid()
        self._pipeline: Pipeline | None = None

    def patches(self, requests: Sequence[ImageRequest]) -> list[torch.Tensor]:
        """As `Decoder.patches`; less than one gray level, on average, from those of Pillow.

        Raises:
            DataError: an image cannot be decoded.
            ConfigError: this is a worker process, and DALI is to decode on the GPU.
            RuntimeError: DALI fails for another reason, such as a lack of memory.
        """
        patches: list[torch.Tensor] = []
        for sources in _batches(_source(request) for request in requests):
            try:
                patches += self._run(sources)
            except RuntimeError as error:
                if all(source.pixels_HW3 is not None for source in sources):
                    raise
                # DALI does not say which file it was; the reference either names it or decodes what DALI refuses
                sources = [_decoded(source.request) for source in sources]
                names = ", ".join(source.request.file.name for source in sources)
                log.warning("DALI refuses one of %s, which Pillow decodes: %s", names, str(error).splitlines()[-1])
                patches += self._run(sources)
        return patches

    def _run(self, sources: list[_Source]) -> list[torch.Tensor]:
        """Patches of a batch; a failure leaves no pipeline behind, for DALI calls it invalid."""
        if self._pipeline is None:
            self._pipeline = self._make_pipeline()
        pipeline, self._pipeline = self._pipeline, None
        merge = self.patcher.merge_size
        contents, pixels, is_file, blocks = [], [], [], []
        for source in sources:
            by_dali = source.pixels_HW3 is None
            contents.append(np.frombuffer(source.request.file.content if by_dali else b"-", np.uint8))
            pixels.append(np.zeros((1, 1, 3), np.uint8) if by_dali else source.pixels_HW3)
            is_file.append(np.array(by_dali))
            blocks.append(np.array(source.request.grid[1:], np.int32) // merge)
        for name, values in (("content", contents), ("pixels", pixels), ("is_file", is_file), ("blocks", blocks)):
            pipeline.feed_input(name, values)
        (outputs,) = pipeline.run()
        outputs = outputs if self.device_id is None else outputs.as_cpu()
        self._pipeline = pipeline
        return [torch.from_dlpack(outputs[index]) for index in range(len(sources))]

    def _make_pipeline(self) -> Pipeline:
        if self.device_id is not None and os.getpid() != self._made_by:
            raise ConfigError(
                f"data.decoder = 'dali' on GPU {self.device_id}, in a worker process",
                "images decoded on a GPU by the process of the rank, since CUDA cannot be forked",
                "set data.num_workers=0 (DALI has threads of its own), or data.decoder=pillow",
            )
        pipeline = _graph(
            self.patcher,
            self.device_id is not None,
            batch_size=MAX_IMAGES,
            num_threads=self.num_threads,
            device_id=self.device_id,
            prefetch_queue_depth=1,  # a run takes what was fed for it; rows are read ahead by the caller
        )
        pipeline.build()
        return pipeline


def decode(content: DataNode, on_gpu: bool) -> DataNode:
    """Graph node: files as (H, W, 3) uint8 RGB, as stored.

    Always RGB: ANY_DATA on a gray JPEG ends the process (DALI 2.4). Orientation is Pillow's affair, so that there is
    one reader of EXIF. Fancy upsampling is what the CPU always does, and lets the GPU do the same.
    """
    device = "mixed" if on_gpu else "cpu"
    return fn.decoders.image(
        content, device=device, output_type=types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True
    )


@pipeline_def(enable_conditionals=True)
def _graph(patcher: Patcher, on_gpu: bool) -> DataNode:
    """Files and pixels -> (P, C) float32 patches in merge-block order.

    Inputs of each image: `is_file` says which of `content` (bytes of a file) and `pixels` (H, W, 3) counts; `blocks`
    are its rows and columns of merge blocks.
    """
    settings = patcher.processor
    merge, patch, frames = settings.merge_size, settings.patch_size, settings.temporal_patch_size
    content = fn.external_source(name="content", dtype=types.UINT8, ndim=1)
    pixels = fn.external_source(name="pixels", dtype=types.UINT8, ndim=3, layout="HWC")
    is_file = fn.external_source(name="is_file", dtype=types.BOOL, ndim=0)
    blocks = fn.external_source(name="blocks", dtype=types.INT32, ndim=1)
    if on_gpu:
        pixels = pixels.gpu()
    if is_file:
        image = decode(content, on_gpu)
    else:
        image = pixels
    # 8 bits again, as Pillow rounds and clips too: closer to it than float values (0.20 against 0.31 gray levels)
    scaled = fn.resize(
        image,
        size=fn.cast(blocks * (merge * patch), dtype=types.FLOAT),
        interp_type=types.INTERP_CUBIC,
        antialias=True,
    )
    num_patches = blocks[0] * blocks[1] * merge**2
    cut = fn.reshape(scaled, shape=_shape(blocks[0], merge, patch, blocks[1], merge, patch, 3), layout="ABCDEFG")
    # (block row, row in block, y, block column, column in block, x, color) -> (block row, block column, row in block,
    # column in block, color, y, x), while a value is still one byte
    cut = fn.transpose(cut, perm=[0, 3, 1, 4, 6, 2, 5])
    cut = fn.reshape(cut, shape=_shape(num_patches, 3, patch, patch), layout="FCHW")
    normal = fn.crop_mirror_normalize(
        cut,
        dtype=types.FLOAT,
        output_layout="FCHW",
        mean=[mean / settings.rescale_factor for mean in settings.image_mean],
        std=[std / settings.rescale_factor for std in settings.image_std],
    )
    stacked = fn.cat(*[normal] * frames, axis=2)  # a still picture fills all frames
    return fn.reshape(stacked, shape=_shape(num_patches, patcher.patch_dim), layout="PC")


def _shape(*sides: int | DataNode) -> DataNode:
    """A shape that differs from image to image."""
    return fn.stack(*(side if isinstance(side, DataNode) else types.Constant(np.int32(side)) for side in sides))


def _source(request: ImageRequest) -> _Source:
    """The file as it is, where DALI decodes it as Pillow would; else its pixels.

    Raises:
        DataError: it had to be decoded here and cannot be.
    """
    if request.view == AS_STORED:
        try:
            with Image.open(BytesIO(request.file.content)) as header:
                if _is_for_dali(header, request.file.content):
                    return _Source(request, header.width * header.height)
        except Exception:  # Pillow raises anything on broken bytes; the reader below says what is wrong, with the name
            log.debug("%s has no header that Pillow can read", request.file.name)
    return _decoded(request)


def _is_for_dali(header: Image.Image, content: bytes) -> bool:
    """True for what DALI decodes bit for bit as Pillow does."""
    if header.mode not in DALI_MODES.get(header.format, ()) or header.width * header.height > MAX_PIXELS:
        return False
    if getattr(header, "is_animated", False) or header.info.keys() & {"interlace", "transparency"}:
        return False
    if header.format == "PNG":
        is_deep = any("16" in str(tile.args) for tile in header.tile)
        return not is_deep and not any(name in content for name in PNG_ORIENTATIONS)
    return header.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9)


def _decoded(request: ImageRequest) -> _Source:
    """Pixels by the reference reader.

    Raises:
        DataError: it cannot decode the file.
    """
    pixels_HW3 = np.asarray(read_image(request.file, request.view, allow_burned_in=True))
    return _Source(request, pixels_HW3.shape[0] * pixels_HW3.shape[1], pixels_HW3)


def _batches(sources: Iterable[_Source]) -> Iterator[list[_Source]]:
    """Neighbors together, up to MAX_IMAGES and MAX_BATCH_PIXELS."""
    batch: list[_Source] = []
    num_pixels = 0
    for source in sources:
        if batch and (len(batch) == MAX_IMAGES or num_pixels + source.num_pixels > MAX_BATCH_PIXELS):
            yield batch
            batch, num_pixels = [], 0
        batch.append(source)
        num_pixels += source.num_pixels
    if batch:
        yield batch


def _cores_per_rank() -> int:
    """Cores this process may use, over the ranks that torchrun has started on the machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
