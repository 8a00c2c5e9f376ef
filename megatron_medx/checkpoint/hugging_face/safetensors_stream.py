"""Safetensors files read and written tensor by tensor.

Reading copies one tensor at a time into memory of its own: a mapped file's pages would count as the process's memory,
all of them in the end. Writing lays out the header from shapes and dtypes alone, so that a shard is never held in
memory (the library's own `save_file` takes all of its tensors at once).
Source: https://github.com/huggingface/safetensors, section Format; read back by the library in the tests.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from megatron_medx.checkpoint.hugging_face.safetensors_header import LENGTH_BYTES, read_header
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.writing.streaming import EarlyWriteback
from megatron_medx.errors import CheckpointError

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""The dtypes that weights are stored in, under the file format's names."""
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_HEADER_ALIGNMENT_BYTES = 8


class SafetensorsFile:
    """One file, open for reading.

    Raises:
        CheckpointError: the file is absent, cut short, or holds a dtype that weights are not stored in.
    """

    def __init__(self, path: Path):
        self.path = path
        headers, start = read_header(path)
        self.specs = {
            key: TensorSpec(tuple(header["shape"]), _DTYPES[header["dtype"]]) for key, header in headers.items()
        }
        self._offsets = {key: start + header["data_offsets"][0] for key, header in headers.items()}

    def read(self, key: str) -> torch.Tensor:
        """Return one tensor.

        Raises:
            CheckpointError: the file has become unreadable or shorter since it was opened.
        """
        spec = self.specs[key]
        content = torch.empty(spec.num_bytes, dtype=torch.uint8)
        try:
            with self.path.open("rb") as file:
                file.seek(self._offsets[key])
                found = file.readinto(content.numpy())
        except OSError as error:
            raise _changed(f"{self.path} cannot be read: {error}") from None
        if found < spec.num_bytes:
            raise _changed(f"{self.path} ends after {found} of the {spec.num_bytes} bytes of {key}")
        return content.view(spec.dtype).reshape(spec.shape)

    def blocks(self, key: str, size_bytes: int) -> Iterator[torch.Tensor]:
        """Yield one tensor's stored bytes, uint8, `size_bytes` at a time; the last block may be smaller.

        Raises:
            CheckpointError: the file has become unreadable or shorter since it was opened.
        """
        left = self.specs[key].num_bytes
        try:
            with self.path.open("rb") as file:
                file.seek(self._offsets[key])
                while left:
                    block = torch.empty(min(left, size_bytes), dtype=torch.uint8)
                    if file.readinto(block.numpy()) < block.nbytes:
                        raise _changed(f"{self.path} ends inside {key}")
                    left -= block.nbytes
                    yield block
        except OSError as error:
            raise _changed(f"{self.path} cannot be read: {error}") from None


def write_safetensors(path: Path, specs: Mapping[str, TensorSpec], tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Write one file, taking its tensors from an iterator that yields them in the order of `specs`.

    Args:
        path: file to create.
        specs: every tensor of the file, in order.
        tensors: yields at least these; exactly `len(specs)` items are taken, so that shards can share one iterator.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for key, spec in specs.items():
        end = offset + spec.num_bytes
        header[key] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little"))
        file.write(text)
        writeback = EarlyWriteback(file)
        for (expected_key, spec), (key, tensor) in zip(specs.items(), tensors, strict=True):
            assert (key, tuple(tensor.shape), tensor.dtype) == (expected_key, spec.shape, spec.dtype), (
                f"planned {expected_key} {spec}, got {key} {tuple(tensor.shape)} {tensor.dtype}"
            )
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
            writeback.advance()
        file.flush()
        os.fsync(file.fileno())


def _changed(found: str) -> CheckpointError:
    return CheckpointError(found, "a file that nobody changes during the conversion", "copy or download the file again")
