"""Megatron's `torch_dist` format, read and written tensor by tensor without a process group.

A folder holds
    metadata.json   which backend wrote it; Megatron writes it last, so its presence means "complete"
    .metadata       pickled torch `Metadata`: for every key its dtype, shape, chunks, and each chunk's file and offset
    *.distcp        the chunks, each what `torch.save` writes
and, among the keys, objects: one `common_state/shard_0_1` with everything that is not a tensor (before megatron-core
0.19 a file `common.pt`), and an `_extra_state` for every module that could hold FP8 scales.

A training checkpoint also holds the optimizer, random states and Transformer Engine's extra states. The rule that
tells the model's weights apart: they are the tensors whose key does not start with one of OPTIMIZER_PREFIXES;
everything that is not a tensor is state of the run.

torch's own `FileSystemWriter` is not used for writing: it keeps every tensor alive until the file is closed.
"""

import json
import math
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_medx.checkpoint.hugging_face.safetensors_stream import DTYPE_NAMES
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.writing.streaming import EarlyWriteback
from megatron_medx.config.checkpoint_folders import METADATA_FILE
from megatron_medx.errors import CheckpointError

INDEX_FILE = ".metadata"
OPTIMIZER_PREFIXES = ("optimizer.", "chained_")

COMMON_STATE = {
    "iteration": 0,
    "checkpoint_version": 3.0,
    "content_metadata": {
        # How the keys are to be understood: a number per layer, SwiGLU's two halves under one key.
        "non_homogeneous_layers": True,
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    },
}
"""What Megatron finds beside the weights of a converted checkpoint; 3.0 is its current order of q, k and v."""


class TorchDistFolder:
    """One folder opened for reading.

    Attributes:
        folder: where it is.
        specs: key -> shape and dtype of every model weight.
        has_optimizer: whether the optimizer's state lies beside them.
    Raises:
        CheckpointError: the index is unreadable, a data file is absent or too short, or a dtype is not one of weights.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self._metadata = FileSystemReader(folder).read_metadata()
        except Exception as error:  # what garbage makes unpickling raise is not limited to a few classes
            raise _damaged(f"{folder / INDEX_FILE} cannot be read: {error}") from None
        tensors = {
            key: entry
            for key, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        stored = {key: entry for key, entry in tensors.items() if not key.startswith(OPTIMIZER_PREFIXES)}
        self.has_optimizer = len(stored) < len(tensors)
        self.specs = {key: self._spec(key, entry) for key, entry in stored.items()}
        self._check_files()

    def _spec(self, key: str, entry: TensorStorageMetadata) -> TensorSpec:
        dtype = entry.properties.dtype
        if dtype not in DTYPE_NAMES:
            raise CheckpointError(
                f"{key} in {self.folder} has dtype {dtype}",
                f"one of {', '.join(str(one) for one in DTYPE_NAMES)}",
                "convert a checkpoint whose weights are not quantized",
            )
        stored = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
        if stored != math.prod(entry.size):
            raise _damaged(f"{key} in {self.folder}: chunks hold {stored} of {math.prod(entry.size)} values")
        for chunk in entry.chunks:
            if any(part.stop > side for part, side in zip(_region(chunk), entry.size, strict=True)):
                raise _damaged(f"{key} in {self.folder}: a chunk reaches beyond {list(entry.size)}")
        return TensorSpec(tuple(entry.size), dtype)

    def _check_files(self) -> None:
        """Every chunk of every weight must lie inside an existing file: one `stat` a file, no late surprise."""
        needed: dict[str, int] = {}
        for index, stored in self._metadata.storage_data.items():
            if index.fqn in self.specs:
                end = stored.offset + stored.length
                needed[stored.relative_path] = max(end, needed.get(stored.relative_path, 0))
        for name, size in needed.items():
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else 0
            if found < size:
                raise _damaged(f"{path} has {found} bytes, its index reaches to {size}")

    def read(self, key: str) -> torch.Tensor:
        """Return one whole tensor, put together from the chunks that the ranks wrote.

        Raises:
            CheckpointError: a chunk cannot be decoded, or is not what the index says.
        """
        spec, chunks = self.specs[key], self._metadata.state_dict_metadata[key].chunks
        if len(chunks) == 1:
            return self._read_chunk(key, chunks[0])  # not copied: memory holds a large embedding once
        whole = torch.empty(spec.shape, dtype=spec.dtype)
        for chunk in chunks:
            whole[_region(chunk)] = self._read_chunk(key, chunk)
        return whole

    def _read_chunk(self, key: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        try:
            stored = self._metadata.storage_data[MetadataIndex(key, chunk.offsets)]
            with (self.folder / stored.relative_path).open("rb") as file:
                view = _create_file_view(file, stored.offset, stored.length)
                part = torch.load(view, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, AssertionError, LookupError, EOFError, pickle.PickleError) as error:
            raise _damaged(f"{key} in {self.folder} cannot be read: {error}") from None
        if not isinstance(part, torch.Tensor) or (part.shape, part.dtype) != (chunk.sizes, self.specs[key].dtype):
            raise _damaged(f"{key} in {self.folder} holds another tensor than its index says")
        return part.detach()


Entries = dict[str, list[int]]
"""Key of a tensor or object -> offset and length in its data file, in bytes."""


def state_objects(extra_state_modules: Mapping[str, int]) -> dict[str, object]:
    """What Megatron asks for beside the weights, by key: its common state, and extra states with nothing in them.

    Args:
        extra_state_modules: modules that get an empty `_extra_state`, because Megatron stops where one is absent, with
            the number of modules that share the name.
    """
    extra = {
        f"{module}._extra_state/shard_{number}_{count}": None
        for module, count in extra_state_modules.items()
        for number in range(count)
    }
    return {"common_state/shard_0_1": COMMON_STATE, **extra}


def write_data_file(
    path: Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterator[tuple[str, torch.Tensor]],
    objects: Mapping[str, object] = MappingProxyType({}),
) -> Entries:
    """Write one data file and force it to disk.

    Args:
        path: file to create.
        specs: every tensor, in the order in which `tensors` yields them.
        tensors: (key, tensor) pairs.
        objects: from `state_objects`, where this file is to hold them; they follow the tensors.
    Returns:
        Where each lies, for `write_index`.
    """
    entries: Entries = {}
    with path.open("wb") as file:
        writeback = EarlyWriteback(file)
        for (expected_key, spec), (key, tensor) in zip(specs.items(), tensors, strict=True):
            assert (key, tuple(tensor.shape), tensor.dtype) == (expected_key, spec.shape, spec.dtype), (
                f"planned {expected_key} {spec}, got {key} {tuple(tensor.shape)} {tensor.dtype}"
            )
            entries[key] = _append(file, _own_storage(tensor))
            writeback.advance()
        for key, item in objects.items():
            entries[key] = _append(file, [item])  # in the list that Megatron puts around objects
        file.flush()
        os.fsync(file.fileno())
    return entries


def write_index(folder: Path, specs: Mapping[str, TensorSpec], files: Mapping[str, Entries]) -> None:
    """Write what makes a folder of data files a whole checkpoint, `metadata.json` last.

    Args:
        folder: with the data files.
        specs: every tensor.
        files: name of each data file -> what `write_data_file` returned.
    """
    index = Metadata(state_dict_metadata={}, storage_data={}, storage_meta=StorageMeta(), version=CURRENT_DCP_VERSION)
    for key, spec in specs.items():
        origin, shape = torch.Size([0] * len(spec.shape)), torch.Size(spec.shape)
        index.state_dict_metadata[key] = TensorStorageMetadata(
            TensorProperties(dtype=spec.dtype), shape, [ChunkStorageMetadata(origin, shape)]
        )
    for name, entries in files.items():
        for key, (offset, length) in entries.items():
            place = MetadataIndex(key)
            if key in specs:
                place = MetadataIndex(key, torch.Size([0] * len(specs[key].shape)), 0)
            else:
                index.state_dict_metadata[key] = BytesStorageMetadata()
            index.storage_data[place] = _StorageInfo(name, offset, length)
    (folder / INDEX_FILE).write_bytes(pickle.dumps(index))
    (folder / METADATA_FILE).write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))


def _append(file: BinaryIO, item: object) -> list[int]:
    """Write one tensor or object at the end of a data file; where it lies."""
    offset = file.tell()
    torch.save(item, file)
    return [offset, file.tell() - offset]


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """`torch.save` writes a tensor's whole storage: give a view of a larger one its own."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _region(chunk: ChunkStorageMetadata) -> tuple[slice, ...]:
    """Where in its tensor a chunk lies."""
    return tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))


def _damaged(found: str) -> CheckpointError:
    return CheckpointError(found, "a complete checkpoint", "name an earlier iter_ folder, or copy it again")
