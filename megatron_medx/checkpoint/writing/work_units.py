"""What a conversion writes, cut into units: one output file each, which any process can write without the others.

The cut depends on shapes, dtypes and the shard size alone. So the files are the same, byte for byte, however many
processes write them, and a later attempt can go on with those that an earlier one finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from megatron_medx.checkpoint.hugging_face.hf_files import SINGLE_FILE
from megatron_medx.checkpoint.layout.rules import Binding
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec

DEFAULT_SHARD_SIZE_BYTES = 5_000_000_000
"""Data in one output file, as on the hub."""

OVERHEAD_BYTES = 32_000_000
"""Room for headers, indexes and a tokenizer (Qwen's is 11 MB) beside the tensors."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One file of the output with tensors."""

    name: str
    """Of the file."""
    specs: dict[str, TensorSpec]
    """Its tensors, in the target's vocabulary, in their order."""
    bound: tuple[Binding, ...]
    """Groups that these come from, in order; a Hugging Face shard may begin or end inside a group."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors; headers come on top."""
        return sum(spec.num_bytes for spec in self.specs.values())


def hf_units(bound: Iterable[Binding], specs: Mapping[str, TensorSpec], shard_size_bytes: int) -> list[Unit]:
    """Cut the tensors of a Hugging Face directory into safetensors files.

    Args:
        bound: groups to write, in order.
        specs: shape and dtype of every tensor in Hugging Face layout.
        shard_size_bytes: as in `plan_shards`.
    """
    ordered = {key: (one, specs[key]) for one in bound for key in one.hf_keys}
    shards = plan_shards({key: spec for key, (_, spec) in ordered.items()}, shard_size_bytes)
    groups = [tuple(dict.fromkeys(ordered[key][0] for key in shard)) for shard in shards]
    return [
        Unit(hf_shard_name(number, len(shards)), shard, group)
        for number, (shard, group) in enumerate(zip(shards, groups, strict=True), start=1)
    ]


def hf_shard_name(number: int, count: int) -> str:
    """The hub's name of shard `number` (from 1) of `count`."""
    return SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def megatron_units(bound: Iterable[Binding], specs: Mapping[str, TensorSpec], shard_size_bytes: int) -> list[Unit]:
    """Cut the tensors of a Megatron checkpoint into data files, named as one rank names several of its own.

    Args:
        bound: groups to write, in order; each is one Megatron tensor.
        specs: shape and dtype of every tensor in Hugging Face layout; a group has one dtype.
        shard_size_bytes: as in `plan_shards`.
    """
    ordered = {one.megatron_key: one for one in bound}
    whole = {key: TensorSpec(one.megatron_shape, specs[one.hf_keys[0]].dtype) for key, one in ordered.items()}
    return [
        Unit(f"__0_{number}.distcp", shard, tuple(ordered[key] for key in shard))
        for number, shard in enumerate(plan_shards(whole, shard_size_bytes))
    ]


def plan_shards(specs: Mapping[str, TensorSpec], shard_size_bytes: int) -> list[dict[str, TensorSpec]]:
    """Cut an ordered set of tensors into shards of at most `shard_size_bytes` (a larger tensor gets its own)."""
    shards, size = [{}], 0
    for key, spec in specs.items():
        if shards[-1] and size + spec.num_bytes > shard_size_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = spec
        size += spec.num_bytes
    return shards
