"""Stored tensors, some rows at a time, so that a sum over many checkpoints holds none of them whole.

Only groups of one tensor whose rows are the same rows on both sides are read so: embeddings, norms, the experts of a
layer. These are the largest tensors of a network; the others are joined or cut, and read whole.
"""

import math
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_medx.checkpoint.hugging_face.hf_directory import HfDirectory
from megatron_medx.checkpoint.hugging_face.hf_files import open_weight_files
from megatron_medx.checkpoint.layout.rules import Binding
from megatron_medx.checkpoint.layout.transformations import Copy, ExpertTranspose
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.errors import CheckpointError

_RECORD = "data/0"
"""Where `torch.save` puts the values of the only tensor in a file."""


def has_row_blocks(one: Binding) -> bool:
    """Whether a group is one tensor with the same rows (of dim 0) in both layouts."""
    return isinstance(one.transformation, Copy | ExpertTranspose)


class RowBlocks:
    """Opened weights that can be read so.

    Args:
        weights: a Hugging Face directory or a checkpoint.
    """

    def __init__(self, weights: HfDirectory | MegatronCheckpoint):
        self._weights = weights
        if isinstance(weights, MegatronCheckpoint):
            self._index = FileSystemReader(weights.folder).read_metadata()
        else:
            self._files = open_weight_files(weights.folder)

    def read(self, one: Binding, num_rows: int) -> Iterator[torch.Tensor]:
        """Yield a group's tensor in Hugging Face layout, `num_rows` of dim 0 at a time; the last may be fewer.

        Args:
            one: a group that `has_row_blocks`.
            num_rows: of a block.
        Raises:
            CheckpointError: a file has become unreadable or shorter since it was opened.
        """
        return self._of_checkpoint(one, num_rows) if self._is_megatron else self._of_directory(one, num_rows)

    @property
    def _is_megatron(self) -> bool:
        return isinstance(self._weights, MegatronCheckpoint)

    def _of_directory(self, one: Binding, num_rows: int) -> Iterator[torch.Tensor]:
        (key,), (shape,) = one.hf_keys, one.hf_shapes
        stored = self._files[key].specs[key]
        row_bytes = stored.num_bytes // stored.shape[0]
        for content in self._files[key].blocks(key, num_rows * row_bytes):
            block = content.view(stored.dtype).reshape(-1, *stored.shape[1:])
            yield block if stored.shape == shape else block.transpose(1, 2).contiguous()  # experts of transformers 5

    def _of_checkpoint(self, one: Binding, num_rows: int) -> Iterator[torch.Tensor]:
        """Rows put together from the chunks that reach into them."""
        key, folder = one.megatron_key, self._weights.folder
        spec, chunks = self._weights.specs[key], self._index.state_dict_metadata[key].chunks
        for start in range(0, spec.shape[0], num_rows):
            stop = min(start + num_rows, spec.shape[0])
            block = torch.empty((stop - start, *spec.shape[1:]), dtype=spec.dtype)
            for chunk in chunks:
                first = chunk.offsets[0]
                low, high = max(start, first), min(stop, first + chunk.sizes[0])
                if low < high:
                    others = zip(chunk.offsets[1:], chunk.sizes[1:], strict=True)
                    region = (slice(low - start, high - start), *(slice(at, at + size) for at, size in others))
                    place = self._index.storage_data[MetadataIndex(key, chunk.offsets)]
                    block[region] = _chunk_rows(folder, place, key, spec.dtype, chunk, low - first, high - first)
            shape = (len(block), *one.hf_shapes[0][1:])
            (part,) = one.transformation.to_hf(block, (shape,), self._weights.model)
            yield part


def _chunk_rows(
    folder: Path, place: _StorageInfo, key: str, dtype: torch.dtype, chunk: ChunkStorageMetadata, low: int, high: int
) -> torch.Tensor:
    """Rows of one chunk, from where `torch.save` put its values; the chunk is read whole where they lie otherwise."""
    rows = torch.empty((high - low, *chunk.sizes[1:]), dtype=dtype)
    try:
        with (folder / place.relative_path).open("rb") as file:
            view = _create_file_view(file, place.offset, place.length)
            layout = torch.load(view, map_location="meta", weights_only=True)
            if (layout.shape, layout.dtype) != (chunk.sizes, dtype):
                raise ValueError("it is another tensor than the index says")
            view.seek(0)
            if not layout.is_contiguous():
                return torch.load(view, map_location="cpu", weights_only=True)[low:high]
            start = torch._C.PyTorchFileReader(view).get_record_offset(_RECORD)
            start += (layout.storage_offset() + low * math.prod(chunk.sizes[1:])) * dtype.itemsize
            file.seek(place.offset + start)
            if file.readinto(rows.reshape(-1).view(torch.uint8).numpy()) < rows.nbytes:
                raise EOFError("the file ends inside it")
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.PickleError) as error:
        raise CheckpointError(
            f"{key} in {folder} cannot be read: {error}",
            "a complete checkpoint that nobody changes",
            "name an earlier iter_ folder, or copy it again",
        ) from None
    return rows
