"""What names and shapes leave open: the layout of experts with equal sides, groups of several dtypes. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from megatron_medx.checkpoint.layout.rules import Binding
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.config.model import ModelConfig
from megatron_medx.errors import CheckpointError


def check_expert_sides(model: ModelConfig, folder: Path) -> None:
    """Refuse experts whose layout their shapes leave open: readers, transformers among them, tell it by the sides.

    Args:
        model: sizes.
        folder: for the message.
    Raises:
        CheckpointError: with the sizes.
    """
    width, inner = model.hidden_size, model.expert_ffn_hidden_size
    if model.is_moe and width in (inner, 2 * inner):
        raise CheckpointError(
            f"{folder}: hidden size {width}, expert width {inner}",
            "an expert width that is neither the hidden size nor half of it: with equal sides nothing tells the hub's "
            "layout of expert matrices from the one that transformers 5 saves",
            "train a network with another model.expert_ffn_hidden_size",
        )


def check_group_dtypes(specs: Mapping[str, TensorSpec], bound: Iterable[Binding], folder: Path) -> None:
    """Refuse groups of several dtypes: joining their tensors would silently convert one of them.

    Args:
        specs: every tensor in Hugging Face layout.
        bound: groups that become one Megatron tensor each.
        folder: for the message.
    Raises:
        CheckpointError: with the keys and dtypes.
    """
    for one in bound:
        dtypes = {key: str(specs[key].dtype) for key in one.hf_keys}
        if len(set(dtypes.values())) > 1:
            raise CheckpointError(
                f"{folder}: {', '.join(f'{key} is {name}' for key, name in dtypes.items())}",
                f"one dtype for the tensors that make up {one.megatron_key}",
                "save the directory again in one dtype",
            )
