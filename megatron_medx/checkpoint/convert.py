"""Hugging Face directory <-> Megatron checkpoint, from files to files.

Each function opens the source (headers only), checks that the rules account for every tensor, checks the disk, and
then streams one binding at a time from the source's reader through its transformation into the target's writer.
No model is built, no process group is started, no GPU is used. The result appears under its name only when complete.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path

import torch

from megatron_medx.checkpoint.hf_directory import HfDirectory, write_companions, write_weights
from megatron_medx.checkpoint.megatron_directory import MegatronCheckpoint, write_root
from megatron_medx.checkpoint.output_folder import new_folder
from megatron_medx.checkpoint.parts import PARTS, check_part, mark_part, stored_part
from megatron_medx.checkpoint.progress import Advance, byte_progress
from megatron_medx.checkpoint.rules import Binding, bindings, check_total, hf_shapes, megatron_shapes
from megatron_medx.checkpoint.tensor_spec import TensorSpec
from megatron_medx.checkpoint.two_parents import TwoParents
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

Weights = HfDirectory | MegatronCheckpoint | TwoParents


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


def to_hf(
    ckpt: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    shard_size_bytes: int = DEFAULT_SHARD_SIZE_BYTES,
    dtype: str = "keep",
    only: str | None = None,
) -> None:
    """Write a Megatron checkpoint, or one part of it, as a Hugging Face directory.

    Args:
        ckpt: checkpoint root or run folder (its latest checkpoint is taken), or one of its iter_ folders.
        out: directory to create.
        overwrite: True replaces an existing directory.
        shard_size_bytes: largest data size of one safetensors file.
        dtype: `keep`, `bf16` or `fp32`.
        only: a name of PARTS; only its tensors are written, beside the config.json of the whole network, in which
            PART_FIELD names the part. None writes all.
    Raises:
        CheckpointError: source or target is not what it must be; nothing is left behind.
    """
    check_part(only)
    chosen = dtype_named(dtype)
    source = MegatronCheckpoint(Path(ckpt))
    bound = checked_bindings(source)
    bound = bound if only is None else bindings(source.model, PARTS[only])
    specs = _cast_specs(hf_specs(source, bound), chosen)
    if not generation_token_ids(source.processor_folder):
        logger.warning("%s holds no tokenizer: the export will have weights and config only", source.processor_folder)
    content = Content(
        model=source.model,
        bound=bound,
        specs=specs,
        read=partial(read_hf_group, source),
        folders=(source.folder,),
        processor_folder=source.processor_folder,
    )
    with new_hf_directory(content, out, "to-hf", overwrite=overwrite, shard_size_bytes=shard_size_bytes) as unfinished:
        if only is not None:
            mark_part(unfinished, only)


def to_megatron(
    hf: str | Path, out: str | Path, *, vision_from: str | Path | None = None, overwrite: bool = False
) -> None:
    """Write a Hugging Face directory as a Megatron release checkpoint, loadable on any grid.

    Args:
        hf: directory of a Qwen3-VL model, dense or mixture of experts; with `vision_from`, of a text-only Qwen3.
        out: checkpoint root to create.
        vision_from: directory of the Qwen3-VL whose tower and mergers are joined to the text-only decoder.
        overwrite: True replaces an existing root.
    Raises:
        CheckpointError: source or target is not what it must be, or the parents do not fit; nothing is left behind.
    """
    source = HfDirectory(Path(hf)) if vision_from is None else TwoParents(Path(hf), Path(vision_from))
    bound = checked_bindings(source)
    content = Content(
        model=source.model,
        bound=bound,
        specs=hf_specs(source, bound),
        read=partial(read_hf_group, source),
        folders=(source.folder,) if vision_from is None else (source.folder, Path(vision_from)),
        processor_folder=source.processor_folder,
    )
    provenance = collect_provenance(conversion_command(hf, out, vision_from))
    write_megatron_root(content, out, "to-megatron", provenance, overwrite=overwrite)


def conversion_command(hf: str | Path, out: str | Path, vision_from: str | Path | None = None) -> list[str]:
    """The command that `to_megatron` records as the origin of what it wrote."""
    words = ["medx", "convert", "to-megatron", str(hf), str(out)]
    return words if vision_from is None else [*words, "--vision-from", str(vision_from)]


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


def dtype_named(name: str) -> torch.dtype | None:
    """The dtype to write in; None leaves every tensor as it is.

    Raises:
        CheckpointError: no such name in DTYPES.
    """
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name!r}", f"one of {', '.join(DTYPES)}", "choose one of them")
    return DTYPES[name]


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
    _check_expert_sides(weights.model, weights.folder)
    bound = bindings(weights.model) if part is None else bindings(weights.model, PARTS[part])
    is_megatron = isinstance(weights, MegatronCheckpoint)
    check_total(megatron_shapes(bound) if is_megatron else hf_shapes(bound), weights.specs, str(weights.folder))
    if not is_megatron:
        _check_group_dtypes(weights, bound)
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


def _check_group_dtypes(source: HfDirectory | TwoParents, bound: tuple[Binding, ...]) -> None:
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


def widest_dtype(specs: dict[str, TensorSpec]) -> torch.dtype:
    """The dtype that holds every tensor exactly: what config.json tells a reader to load in."""
    return reduce(torch.promote_types, {spec.dtype for spec in specs.values()})


def _cast_specs(specs: dict[str, TensorSpec], dtype: torch.dtype | None) -> dict[str, TensorSpec]:
    return specs if dtype is None else {key: replace(spec, dtype=dtype) for key, spec in specs.items()}


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
