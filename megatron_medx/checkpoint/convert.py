"""Hugging Face directory <-> Megatron checkpoint, from files to files.

Each function opens the source (headers only), checks that the rules account for every tensor (`weights.py`), and hands
what is to be written to `content.py`. No model is built, no process group is started, no GPU is used.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from megatron_medx.checkpoint.content import DEFAULT_SHARD_SIZE_BYTES, Content, new_hf_directory, write_megatron_root
from megatron_medx.checkpoint.hf_directory import HfDirectory
from megatron_medx.checkpoint.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.parts import PARTS, check_part, mark_part
from megatron_medx.checkpoint.rules import bindings
from megatron_medx.checkpoint.tensor_spec import TensorSpec
from megatron_medx.checkpoint.two_parents import TwoParents
from megatron_medx.checkpoint.weights import checked_bindings, hf_specs, read_hf_group
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
