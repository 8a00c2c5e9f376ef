"""The tensors of one network written out as a Hugging Face directory or as a Megatron release checkpoint.

What is written is a `Content`: names, shapes and a way to read each group. One group at a time goes from its reader
through its transformation into the target's writer. The result appears under its name only when complete.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch

from megatron_medx.checkpoint.hf_directory import write_companions, write_weights
from megatron_medx.checkpoint.megatron_directory import write_root
from megatron_medx.checkpoint.output_folder import new_folder
from megatron_medx.checkpoint.progress import Advance, byte_progress
from megatron_medx.checkpoint.rules import Binding
from megatron_medx.checkpoint.tensor_spec import TensorSpec
from megatron_medx.config.model import ModelConfig

DEFAULT_SHARD_SIZE_BYTES = 5_000_000_000
"""Data in one safetensors file, as on the hub."""

_OVERHEAD_BYTES = 32_000_000
"""Room for headers, indexes and a tokenizer (Qwen's is 11 MB) beside the tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The tensors of one network on their way into files: what they are, and how each group of them is had."""

    model: ModelConfig
    """Sizes of the whole network."""
    bound: tuple[Binding, ...]
    """Groups to write, in this order."""
    specs: dict[str, TensorSpec]
    """Shape and dtype of each tensor in Hugging Face layout, as it will be written."""
    read: Callable[[Binding], tuple[torch.Tensor, ...]]
    """Gives the tensors of one group in Hugging Face layout, in any dtype."""
    folders: tuple[Path, ...]
    """What is read: an output must not replace any of it."""
    processor_folder: Path
    """Where the tokenizer, template and preprocessor files lie."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, in either layout."""
        return sum(spec.num_bytes for spec in self.specs.values())


@contextmanager
def new_hf_directory(
    content: Content, out: str | Path, label: str, *, overwrite: bool, shard_size_bytes: int
) -> Iterator[Path]:
    """Write a Hugging Face directory; the block may add to it before it gets its name.

    Args:
        content: what to write.
        out: directory to create.
        label: what the progress line calls it.
        overwrite, shard_size_bytes: as in `to_hf`.
    Raises:
        CheckpointError: the target is not what it must be, or the content cannot be read; nothing is left behind.
    """
    out = Path(out)
    room = content.num_bytes + _OVERHEAD_BYTES
    source = _most_at_risk(content.folders, out)
    with new_folder(out, source=source, overwrite=overwrite, needed_bytes=room) as unfinished:
        with byte_progress(label, content.num_bytes) as advance:
            write_weights(unfinished, content.specs, _hf_tensors(content, advance), shard_size_bytes)
        write_companions(unfinished, content.model, widest_dtype(content.specs), content.processor_folder)
        yield unfinished


def write_megatron_root(
    content: Content, out: str | Path, label: str, provenance: Mapping[str, object], *, overwrite: bool
) -> None:
    """Write a Megatron release checkpoint.

    Args:
        content: what to write: a whole network.
        out: checkpoint root to create.
        label: what the progress line calls it.
        provenance: what made the weights, for run.yaml.
        overwrite: True replaces an existing root.
    Raises:
        CheckpointError: the target is not what it must be, or the content cannot be read; nothing is left behind.
    """
    out = Path(out)
    room = content.num_bytes + _OVERHEAD_BYTES
    source = _most_at_risk(content.folders, out)
    specs = {
        one.megatron_key: TensorSpec(one.megatron_shape, content.specs[one.hf_keys[0]].dtype) for one in content.bound
    }
    with (
        new_folder(out, source=source, overwrite=overwrite, needed_bytes=room) as unfinished,
        byte_progress(label, content.num_bytes) as advance,
    ):
        write_root(
            unfinished,
            content.model,
            specs,
            _megatron_tensors(content, advance),
            processor_folder=content.processor_folder,
            provenance=provenance,
        )


def _most_at_risk(folders: tuple[Path, ...], out: Path) -> Path:
    """The folder that `new_folder` is to keep from being overwritten: one that lies inside `out`, if any does."""
    return next((folder for folder in folders if folder.resolve().is_relative_to(out.resolve())), folders[0])


def widest_dtype(specs: dict[str, TensorSpec]) -> torch.dtype:
    """The dtype that holds every tensor exactly: what config.json tells a reader to load in."""
    return reduce(torch.promote_types, {spec.dtype for spec in specs.values()})


def _hf_tensors(content: Content, advance: Advance) -> Iterator[tuple[str, torch.Tensor]]:
    for one in content.bound:
        for key, tensor in zip(one.hf_keys, content.read(one), strict=True):
            yield key, tensor.to(content.specs[key].dtype)
            advance(content.specs[key].num_bytes)


def _megatron_tensors(content: Content, advance: Advance) -> Iterator[tuple[str, torch.Tensor]]:
    for one in content.bound:
        parts = zip(one.hf_keys, content.read(one), strict=True)
        cast = tuple(tensor.to(content.specs[key].dtype) for key, tensor in parts)
        whole = one.transformation.to_megatron(cast, content.model)
        yield one.megatron_key, whole
        advance(whole.nbytes)
