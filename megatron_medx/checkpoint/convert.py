"""Hugging Face directory <-> Megatron checkpoint, from files to files; also from one Megatron checkpoint to another.

Each function opens the source (headers only), checks that the rules account for every tensor (`weights.py`), and hands
what is to be written to `content.py`. No model is built, no process group is started, no GPU is used.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from megatron_medx.checkpoint.card.model_card import write_model_card
from megatron_medx.checkpoint.content import DEFAULT_SHARD_SIZE_BYTES, Content, new_hf_directory, write_megatron_root
from megatron_medx.checkpoint.layout.parts import PARTS, check_part, mark_part
from megatron_medx.checkpoint.layout.rules import bindings
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.sources.added_tokens import read_added_tokens, write_processor
from megatron_medx.checkpoint.sources.origin import origin_of
from megatron_medx.checkpoint.sources.two_parents import TwoParents
from megatron_medx.checkpoint.sources.vocabulary import growth_provenance, with_added_tokens
from megatron_medx.checkpoint.weights import checked_bindings, hf_specs, open_weights, read_hf_group
from megatron_medx.config.files import collect_provenance
from megatron_medx.config.processor import generation_token_ids
from megatron_medx.errors import CheckpointError

logger = logging.getLogger(__name__)

DTYPES = {"keep": None, "bf16": torch.bfloat16, "fp32": torch.float32}
"""Names of `dtype`; `keep` leaves every tensor as it is stored."""


def to_hf(
    ckpt: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    shard_size_bytes: int = DEFAULT_SHARD_SIZE_BYTES,
    dtype: str = "keep",
    only: str | None = None,
    num_workers: int = 1,
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
        num_workers: processes that write, a file each at a time; each needs memory for a few tensors. The result does
            not depend on it.
    Raises:
        CheckpointError: source or target is not what it must be; nothing is left behind.
        InterruptedConversion: the disk filled up or a worker was killed; the same call goes on after what is finished.
    """
    content = hf_content(ckpt, dtype=dtype, only=only)
    with new_hf_directory(
        content, out, "to-hf", overwrite=overwrite, shard_size_bytes=shard_size_bytes, num_workers=num_workers
    ) as unfinished:
        if only is not None:
            mark_part(unfinished, only)
        write_model_card(unfinished, content.model, content.folders)


def hf_content(ckpt: str | Path, *, dtype: str = "keep", only: str | None = None) -> Content:
    """What `to_hf` writes: a checkpoint that was opened and checked, but not yet read.

    Args:
        ckpt, dtype, only: as in `to_hf`.
    Raises:
        CheckpointError: the source is not what it must be.
    """
    check_part(only)
    chosen = dtype_named(dtype)
    source = MegatronCheckpoint(Path(ckpt))
    bound = checked_bindings(source)
    bound = bound if only is None else bindings(source.model, PARTS[only])
    specs = _cast_specs(hf_specs(source, bound), chosen)
    if not generation_token_ids(source.processor_folder):
        logger.warning("%s holds no tokenizer: the export will have weights and config only", source.processor_folder)
    return Content(
        model=source.model,
        bound=bound,
        specs=specs,
        read=partial(read_hf_group, source),
        folders=(source.folder,),
        processor_folder=source.processor_folder,
        options="",  # dtype and part are in the plan
    )


def to_megatron(
    source: str | Path,
    out: str | Path,
    *,
    vision_from: str | Path | None = None,
    dtype: str = "keep",
    add_tokens: str | Path | None = None,
    overwrite: bool = False,
    shard_size_bytes: int = DEFAULT_SHARD_SIZE_BYTES,
    num_workers: int = 1,
) -> None:
    """Write weights as a Megatron release checkpoint: loadable on any grid, without optimizer.

    Its run.yaml says in `provenance` what was read: paths, steps, and the provenance of each.

    Args:
        source: directory of a Qwen3-VL model, dense or mixture of experts; or a Megatron checkpoint (root, run folder
            or iter_ folder) of any grid; with `vision_from`, directory of a text-only Qwen3.
        out: checkpoint root to create.
        vision_from: directory of the Qwen3-VL whose tower and mergers are joined to the text-only decoder.
        dtype: `keep`, `bf16` or `fp32`.
        add_tokens: file with special tokens, one a line, that tokenizer and vocabulary get (rule: `vocabulary.py`).
        overwrite: True replaces an existing root.
        shard_size_bytes: largest data size of one of its files.
        num_workers: as in `to_hf`.
    Raises:
        CheckpointError: source or target is not what it must be, the parents do not fit, or tokens cannot be added;
            nothing is left behind.
        InterruptedConversion: as in `to_hf`.
    """
    content = megatron_content(source, vision_from=vision_from, dtype=dtype)
    provenance = collect_provenance(conversion_command(source, out, vision_from, dtype, add_tokens))
    provenance["sources"] = [origin_of(folder) for folder in content.folders]
    with TemporaryDirectory(prefix="medx-processor-") as scratch:
        if add_tokens is not None:
            added = read_added_tokens(Path(add_tokens), content.processor_folder)
            grown = with_added_tokens(content, added)
            provenance["added_tokens"] = growth_provenance(added, content, grown)
            write_processor(added, Path(scratch))
            content = replace(grown, processor_folder=Path(scratch))
        write_megatron_root(
            content,
            out,
            "to-megatron",
            provenance,
            overwrite=overwrite,
            shard_size_bytes=shard_size_bytes,
            num_workers=num_workers,
        )


def megatron_content(
    source: str | Path,
    *,
    vision_from: str | Path | None = None,
    dtype: str = "keep",
    add_tokens: str | Path | None = None,
) -> Content:
    """What `to_megatron` writes, tokenizer files apart: a source that was opened and checked, but not yet read.

    Args:
        source, vision_from, dtype, add_tokens: as in `to_megatron`.
    Raises:
        CheckpointError: the source is not what it must be, the parents do not fit, or tokens cannot be added.
    """
    chosen = dtype_named(dtype)
    path = Path(source)
    opened = open_weights(path) if vision_from is None else TwoParents(path, Path(vision_from))
    bound = checked_bindings(opened)
    content = Content(
        model=opened.model,
        bound=bound,
        specs=_cast_specs(hf_specs(opened, bound), chosen),
        read=partial(read_hf_group, opened),
        folders=(opened.folder,) if vision_from is None else (opened.folder, Path(vision_from)),
        processor_folder=opened.processor_folder,
        options="",  # the parents are in `folders`, dtypes in the plan
    )
    if add_tokens is None:
        return content
    return with_added_tokens(content, read_added_tokens(Path(add_tokens), content.processor_folder))


def conversion_command(
    source: str | Path,
    out: str | Path,
    vision_from: str | Path | None = None,
    dtype: str = "keep",
    add_tokens: str | Path | None = None,
) -> list[str]:
    """The command that `to_megatron` records as the origin of what it wrote."""
    words = ["medx", "convert", "to-megatron", str(source), str(out)]
    words += [] if vision_from is None else ["--vision-from", str(vision_from)]
    words += [] if dtype == "keep" else ["--dtype", dtype]
    return words if add_tokens is None else [*words, "--add-tokens", str(add_tokens)]


def dtype_named(name: str) -> torch.dtype | None:
    """The dtype to write in; None leaves every tensor as it is.

    Raises:
        CheckpointError: no such name in DTYPES.
    """
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name!r}", f"one of {', '.join(DTYPES)}", "choose one of them")
    return DTYPES[name]


def _cast_specs(specs: dict[str, TensorSpec], dtype: torch.dtype | None) -> dict[str, TensorSpec]:
    return specs if dtype is None else {key: replace(spec, dtype=dtype) for key, spec in specs.items()}
