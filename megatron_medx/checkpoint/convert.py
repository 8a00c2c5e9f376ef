"""Hugging Face directory <-> Megatron checkpoint, from files to files.

Each function opens the source (headers only), checks that the rules account for every tensor, checks the disk, and
then streams one binding at a time from the source's reader through its transformation into the target's writer.
No model is built, no process group is started, no GPU is used. The result appears under its name only when complete.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch

from megatron_medx.checkpoint.hf_directory import HfDirectory, write_companions, write_weights
from megatron_medx.checkpoint.megatron_directory import MegatronCheckpoint, write_root
from megatron_medx.checkpoint.output_folder import new_folder
from megatron_medx.checkpoint.progress import Advance, byte_progress
from megatron_medx.checkpoint.rules import Binding, bindings, check_total, hf_shapes, megatron_shapes
from megatron_medx.checkpoint.tensor_spec import TensorSpec
from megatron_medx.config.checkpoint_folders import CONFIG_FILE, TRACKER_FILE, is_megatron_checkpoint
from megatron_medx.config.files import collect_provenance
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.processor import generation_token_ids
from megatron_medx.errors import CheckpointError

logger = logging.getLogger(__name__)

DEFAULT_SHARD_SIZE_BYTES = 5_000_000_000
"""Data in one safetensors file, as on the hub."""

DTYPES = {"keep": None, "bf16": torch.bfloat16, "fp32": torch.float32}
"""Names of `dtype`; `keep` leaves every tensor as it is stored."""

_OVERHEAD_BYTES = 32_000_000
"""Room for headers, indexes and a tokenizer (Qwen's is 11 MB) beside the tensors."""

Weights = HfDirectory | MegatronCheckpoint


def to_hf(
    ckpt: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    shard_size_bytes: int = DEFAULT_SHARD_SIZE_BYTES,
    dtype: str = "keep",
) -> None:
    """Write a Megatron checkpoint as a Hugging Face directory.

    Args:
        ckpt: checkpoint root or run folder (its latest checkpoint is taken), or one of its iter_ folders.
        out: directory to create.
        overwrite: True replaces an existing directory.
        shard_size_bytes: largest data size of one safetensors file.
        dtype: `keep`, `bf16` or `fp32`.
    Raises:
        CheckpointError: source or target is not what it must be; nothing is left behind.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r}", f"one of {', '.join(DTYPES)}", "choose one of them")
    source = MegatronCheckpoint(Path(ckpt))
    bound = checked_bindings(source)
    specs = _cast_specs(hf_specs(source, bound), DTYPES[dtype])
    if not generation_token_ids(source.processor_folder):
        logger.warning("%s holds no tokenizer: the export will have weights and config only", source.processor_folder)
    total_bytes = sum(spec.num_bytes for spec in specs.values())
    with (
        new_folder(
            Path(out), source=source.folder, overwrite=overwrite, needed_bytes=total_bytes + _OVERHEAD_BYTES
        ) as partial,
        byte_progress("to-hf", total_bytes) as advance,
    ):
        write_weights(partial, specs, _hf_tensors(source, bound, specs, advance), shard_size_bytes)
        write_companions(partial, source.model, widest_dtype(specs), source.processor_folder)


def to_megatron(hf: str | Path, out: str | Path, *, overwrite: bool = False) -> None:
    """Write a Hugging Face directory as a Megatron release checkpoint, loadable on any grid.

    Args:
        hf: directory of a Qwen3-VL model, dense or mixture of experts.
        out: checkpoint root to create.
        overwrite: True replaces an existing root.
    Raises:
        CheckpointError: source or target is not what it must be; nothing is left behind.
    """
    source = HfDirectory(Path(hf))
    bound = checked_bindings(source)
    specs = {one.megatron_key: TensorSpec(one.megatron_shape, source.specs[one.hf_keys[0]].dtype) for one in bound}
    total_bytes = sum(spec.num_bytes for spec in specs.values())
    with (
        new_folder(
            Path(out), source=source.folder, overwrite=overwrite, needed_bytes=total_bytes + _OVERHEAD_BYTES
        ) as partial,
        byte_progress("to-megatron", total_bytes) as advance,
    ):
        write_root(
            partial,
            source.model,
            specs,
            _megatron_tensors(source, bound, advance),
            processor_folder=source.processor_folder,
            provenance=collect_provenance(conversion_command(hf, out)),
        )


def conversion_command(hf: str | Path, out: str | Path) -> list[str]:
    """The command that `to_megatron` records as the origin of what it wrote."""
    return ["medx", "convert", "to-megatron", str(hf), str(out)]


def open_weights(path: Path) -> Weights:
    """Open a Hugging Face directory or a Megatron checkpoint, whichever it is.

    Raises:
        CheckpointError: it is neither, or it cannot be read whole.
    """
    if is_megatron_checkpoint(path):
        return MegatronCheckpoint(path)
    if (path / CONFIG_FILE).is_file():
        return HfDirectory(path)
    raise CheckpointError(
        f"{path} holds neither {CONFIG_FILE} nor {TRACKER_FILE}",
        "a Hugging Face directory, a Megatron checkpoint or a run folder with one",
        "check the path",
    )


def checked_bindings(weights: Weights) -> tuple[Binding, ...]:
    """The tensor groups of opened weights, after the check that they are exactly what is stored.

    Raises:
        CheckpointError: missing, extra or misshapen tensors, a group whose tensors differ in dtype, or experts of
            sides that leave their layout open.
    """
    _check_expert_sides(weights.model, weights.folder)
    bound = bindings(weights.model)
    expected = megatron_shapes(bound) if isinstance(weights, MegatronCheckpoint) else hf_shapes(bound)
    check_total(expected, weights.specs, str(weights.folder))
    if isinstance(weights, HfDirectory):
        _check_group_dtypes(weights, bound)
    return bound


def _check_expert_sides(model: ModelConfig, folder: Path) -> None:
    """Readers of the export, transformers among them, tell the two layouts of stacked experts apart by their sides."""
    width, inner = model.hidden_size, model.expert_ffn_hidden_size
    if model.is_moe and width in (inner, 2 * inner):
        raise CheckpointError(
            f"{folder}: hidden size {width}, expert width {inner}",
            "an expert width that is neither the hidden size nor half of it: with equal sides nothing tells the hub's "
            "layout of expert matrices from the one that transformers 5 saves",
            "train a network with another model.expert_ffn_hidden_size",
        )


def _check_group_dtypes(source: HfDirectory, bound: tuple[Binding, ...]) -> None:
    """Joining tensors of two dtypes would silently convert one of them."""
    for one in bound:
        dtypes = {key: str(source.specs[key].dtype) for key in one.hf_keys}
        if len(set(dtypes.values())) > 1:
            raise CheckpointError(
                f"{source.folder}: {', '.join(f'{key} is {name}' for key, name in dtypes.items())}",
                f"one dtype for the tensors that make up {one.megatron_key}",
                "save the directory again in one dtype",
            )


def hf_specs(weights: Weights, bound: tuple[Binding, ...]) -> dict[str, TensorSpec]:
    """Shapes and dtypes in Hugging Face layout, in the order of the bindings."""
    if isinstance(weights, HfDirectory):
        return {key: weights.specs[key] for one in bound for key in one.hf_keys}
    return {
        key: TensorSpec(shape, weights.specs[one.megatron_key].dtype)
        for one in bound
        for key, shape in zip(one.hf_keys, one.hf_shapes, strict=True)
    }


def read_hf_group(weights: Weights, one: Binding) -> tuple[torch.Tensor, ...]:
    """One group's tensors in Hugging Face layout, from either kind of file."""
    if isinstance(weights, HfDirectory):
        return tuple(weights.read(key) for key in one.hf_keys)
    return one.transformation.to_hf(weights.read(one.megatron_key), one.hf_shapes, weights.model)


def widest_dtype(specs: dict[str, TensorSpec]) -> torch.dtype:
    """The dtype that holds every tensor exactly: what config.json tells a reader to load in."""
    return reduce(torch.promote_types, {spec.dtype for spec in specs.values()})


def _cast_specs(specs: dict[str, TensorSpec], dtype: torch.dtype | None) -> dict[str, TensorSpec]:
    return specs if dtype is None else {key: replace(spec, dtype=dtype) for key, spec in specs.items()}


def _hf_tensors(
    source: MegatronCheckpoint, bound: tuple[Binding, ...], specs: dict[str, TensorSpec], advance: Advance
) -> Iterator[tuple[str, torch.Tensor]]:
    for one in bound:
        for key, tensor in zip(one.hf_keys, read_hf_group(source, one), strict=True):
            yield key, tensor.to(specs[key].dtype)
            advance(specs[key].num_bytes)


def _megatron_tensors(
    source: HfDirectory, bound: tuple[Binding, ...], advance: Advance
) -> Iterator[tuple[str, torch.Tensor]]:
    for one in bound:
        whole = one.transformation.to_megatron(read_hf_group(source, one), source.model)
        yield one.megatron_key, whole
        advance(whole.nbytes)
