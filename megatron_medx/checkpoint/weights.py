"""Weights of one network opened for conversion, whichever kind of file they lie in, and the check that they are whole.

Whoever converts, compares or inspects asks here: for the groups of tensors (`checked_bindings`), their shapes and
dtypes in Hugging Face layout (`hf_specs`) and their values (`read_hf_group`).
"""

from pathlib import Path

import torch

from megatron_medx.checkpoint.hugging_face.hf_directory import HfDirectory
from megatron_medx.checkpoint.hugging_face.hf_files import ADAPTER_FILE
from megatron_medx.checkpoint.layout.parts import PARTS, stored_part
from megatron_medx.checkpoint.layout.rules import Binding, bindings, check_total, hf_shapes, megatron_shapes
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.layout.unambiguous import check_expert_sides, check_group_dtypes
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.sources.two_parents import TwoParents
from megatron_medx.config.checkpoint_folders import CONFIG_FILE, TRACKER_FILE, is_megatron_checkpoint
from megatron_medx.errors import CheckpointError

Weights = HfDirectory | MegatronCheckpoint | TwoParents


def open_weights(path: Path) -> Weights:
    """Open a Hugging Face directory or a Megatron checkpoint, whichever it is.

    Raises:
        CheckpointError: it is neither, or it cannot be read whole.
    """
    if is_megatron_checkpoint(path):
        return MegatronCheckpoint(path)
    if any((path / name).is_file() for name in (CONFIG_FILE, ADAPTER_FILE)):  # the second is refused there
        return HfDirectory(path)
    raise CheckpointError(
        f"{path} holds neither {CONFIG_FILE} nor {TRACKER_FILE}",
        "a Hugging Face directory, a Megatron checkpoint or a run folder with one",
        "check the path",
    )


def checked_bindings(weights: Weights, part: str | None = None) -> tuple[Binding, ...]:
    """The tensor groups of opened weights, after the check that they are exactly what is stored.

    Args:
        weights: opened weights.
        part: the part that they are to hold alone; None wants the whole network.
    Raises:
        CheckpointError: missing, extra or misshapen tensors, a group whose tensors differ in dtype, experts of sides
            that leave their layout open, or a part where the whole is wanted.
    """
    stored = _part_of(weights)
    if stored != part:
        raise CheckpointError(
            f"{weights.folder} holds the {stored} part of a network alone" if stored else f"{weights.folder} is whole",
            f"the {part} part alone" if part else "a whole network",
            "name another directory, or write it again with another --only",
        )
    check_expert_sides(weights.model, weights.folder)
    bound = bindings(weights.model) if part is None else bindings(weights.model, PARTS[part])
    is_megatron = isinstance(weights, MegatronCheckpoint)
    check_total(megatron_shapes(bound) if is_megatron else hf_shapes(bound), weights.specs, str(weights.folder))
    if not is_megatron:
        check_group_dtypes(weights.specs, bound, weights.folder)
    return bound


def shared_bindings(first: Weights, second: Weights) -> tuple[Binding, ...]:
    """The tensor groups that two sets of weights of one network both hold: all, or those of the part that one holds.

    Raises:
        CheckpointError: they hold two different parts, or either is not exactly what it says (`checked_bindings`).
    """
    one, other = _part_of(first), _part_of(second)
    if one and other and one != other:
        raise CheckpointError(
            f"{first.folder} holds the {one} part alone, {second.folder} the {other} part",
            "the same part on both sides, or a whole network on one",
            "compare each with the checkpoint that it was exported from",
        )
    checked = {part: checked_bindings(weights, part) for weights, part in ((first, one), (second, other))}
    return checked[one or other]


def _part_of(weights: Weights) -> str | None:
    """The part that weights hold alone, which only Hugging Face directories do; None where they are whole."""
    return stored_part(weights.folder) if isinstance(weights, HfDirectory) else None


def hf_specs(weights: Weights, bound: tuple[Binding, ...]) -> dict[str, TensorSpec]:
    """Shapes and dtypes in Hugging Face layout, in the order of the bindings."""
    if not isinstance(weights, MegatronCheckpoint):
        return {key: weights.specs[key] for one in bound for key in one.hf_keys}
    return {
        key: TensorSpec(shape, weights.specs[one.megatron_key].dtype)
        for one in bound
        for key, shape in zip(one.hf_keys, one.hf_shapes, strict=True)
    }


def read_hf_group(weights: Weights, one: Binding) -> tuple[torch.Tensor, ...]:
    """One group's tensors in Hugging Face layout, from either kind of file."""
    if not isinstance(weights, MegatronCheckpoint):
        return tuple(weights.read(key) for key in one.hf_keys)
    return one.transformation.to_hf(weights.read(one.megatron_key), one.hf_shapes, weights.model)
