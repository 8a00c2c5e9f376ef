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
from safetensors import SafetensorError, safe_open

from megatron_medx.checkpoint.streaming import EarlyWriteback
from megatron_medx.checkpoint.tensor_spec import TensorSpec
from megatron_medx.errors import CheckpointError

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""The dtypes that weights are stored in, under the file format's names."""
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_HEADER_ALIGNMENT_BYTES = 8
_LENGTH_BYTES = 8
"""A file starts with the length of its header; data offsets count from the header's end."""


class SafetensorsFile:
    """One file, open for reading.

    Raises:
        CheckpointError: the file is absent, cut short, or holds a dtype that weights are not stored in.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, framework="pt"):
                pass  # for the library's checks: a whole header, offsets without gaps, the file's length
            with path.open("rb") as file:
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
                headers = json.loads(file.read(length))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}",
                "a complete safetensors file",
                "copy or download the file again",
            ) from None
        headers.pop("__metadata__", None)
        self.specs = {key: self._spec(key, header) for key, header in headers.items()}
        self._offsets = {key: _LENGTH_BYTES + length + header["data_offsets"][0] for key, header in headers.items()}

    def _spec(self, key: str, header: dict) -> TensorSpec:
        name = header["dtype"]
        if name not in _DTYPES:
            raise CheckpointError(
                f"{key} in {self.path} has dtype {name}",
                f"one of {', '.join(_DTYPES)}",
                "convert an unquantized checkpoint",
            )
        return TensorSpec(tuple(header["shape"]), _DTYPES[name])

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
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        writeback = EarlyWriteback(file)
        for expected_key, spec in specs.items():
            key, tensor = next(tensors)
            assert (key, tuple(tensor.shape), tensor.dtype) == (expected_key, spec.shape, spec.dtype), (
                f"planned {expected_key} {spec}, got {key} {tuple(tensor.shape)} {tensor.dtype}"
            )
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
            writeback.advance()
        file.flush()
        os.fsync(file.fileno())


def _changed(found: str) -> CheckpointError:
    return CheckpointError(found, "a file that nobody changes during the conversion", "copy or download the file again")
