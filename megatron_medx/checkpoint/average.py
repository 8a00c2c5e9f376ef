"""Weighted mean of several checkpoints of one network, from files to files.

For the last checkpoints of a run, or the branches of a branch-and-merge run. With a base it merges task vectors:
base + scale * (mean - base), which is a weighted sum as well, with 1 - scale as the weight of the base.

Values are summed in float64: 53 bits hold the products of the 24 of a float32 with a weight so
closely that the sum's own error is 2^-53 of its largest term a step, far below half a step of the written dtype. Then
every value is rounded to that dtype (to bfloat16 through float32, as torch does it). Therefore

- equal inputs give the same bits, of every value but one: -0.0 becomes 0.0 where a scale above 1 is used;
- another order of the inputs changes the sum by those errors alone: the written value is the same, or the next one
  where the exact mean lies that close to the middle between two; only where terms cancel each other to that last bit
  can it be further off, by 2^-52 of the largest term for each input.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import torch

from megatron_medx.checkpoint.card.model_card import write_model_card
from megatron_medx.checkpoint.content import DEFAULT_SHARD_SIZE_BYTES, Content, new_hf_directory, write_megatron_root
from megatron_medx.checkpoint.convert import dtype_named
from megatron_medx.checkpoint.layout.rules import Binding
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.sources.row_blocks import RowBlocks, has_row_blocks
from megatron_medx.checkpoint.weights import Weights, checked_bindings, hf_specs, open_weights, read_hf_group
from megatron_medx.config.checkpoint_folders import RUN_FILE, step_of
from megatron_medx.config.differences import differences
from megatron_medx.config.files import collect_provenance, write_model_only
from megatron_medx.errors import CheckpointError

logger = logging.getLogger(__name__)

SUM_TOLERANCE = 1e-9
"""How far from 1 weights may sum up to: below half a step of float32 (2^-25), so equal inputs still give the same bits,
and above what decimal fractions lose in a float64."""

_BLOCK_VALUES = 2**22
"""Values that are widened to float64 at once: 32 MiB, beside as much for their sum."""

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class _Term:
    """One summand: opened weights, and what their values are multiplied with."""

    source: Weights
    factor: float
    rows: RowBlocks


def average(
    out: str | Path,
    checkpoints: Sequence[str | Path],
    *,
    weights: Sequence[float] | None = None,
    base: str | Path | None = None,
    scale: float | None = None,
    dtype: str = "keep",
    hf: bool = False,
    overwrite: bool = False,
    shard_size_bytes: int = DEFAULT_SHARD_SIZE_BYTES,
    num_workers: int = 1,
) -> None:
    """Write the weighted mean of checkpoints of one network; what was averaged stands in its run.yaml.

    Needs memory for one tensor as it is written (an embedding, or the experts of a layer), while the one before it may
    still be on its way to the disk; tensors that Megatron joins, such as gate and up, are also held in float64 and as
    stored in one input. The number of inputs does not matter.

    Args:
        out: checkpoint root to create, or Hugging Face directory with `hf`.
        checkpoints: each a Hugging Face directory, a checkpoint root, a run folder or an iter_ folder; with `base` at
            least one, else at least two. Tokenizer and template come from the first (from `base`, if given).
        weights: above 0, one for each checkpoint, with sum 1; None weighs all alike.
        base: what the branches started from; then base + scale * (mean - base) is written.
        scale: only with `base`: how far to go from it; 1 ends at the mean.
        dtype: `keep` (the one that holds the inputs' dtypes of that tensor), `bf16` or `fp32`.
        hf: True writes a Hugging Face directory, False a Megatron release checkpoint.
        overwrite: True replaces an existing output.
        shard_size_bytes: largest data size of one file.
        num_workers: as in `to_hf`.
    Raises:
        CheckpointError: weights or scale make no mean, the networks differ, a value is not finite, or source or
            target is not what it must be; nothing is left behind.
    """
    chosen = dtype_named(dtype)
    factors = _factors(checkpoints, weights, base, scale)
    paths = [*([] if base is None else [base]), *checkpoints]
    sources = [open_weights(Path(path)) for path in paths]
    terms = [_Term(source, factor, RowBlocks(source)) for source, factor in zip(sources, factors, strict=True)]
    _check_same_network(terms)
    content = _content(terms, chosen)
    provenance = {
        **collect_provenance(_command(out, checkpoints, weights, base, scale, dtype, hf)),
        "averaged": [_origin(term) for term in terms],
    }
    engine = {"overwrite": overwrite, "shard_size_bytes": shard_size_bytes, "num_workers": num_workers}
    if not hf:
        write_megatron_root(content, out, "average", provenance, **engine)
        return
    with new_hf_directory(content, out, "average", **engine) as unfinished:
        write_model_only(content.model, unfinished / RUN_FILE, provenance)
        write_model_card(unfinished, content.model, content.folders, factors)


def _factors(
    checkpoints: Sequence[str | Path], weights: Sequence[float] | None, base: str | Path | None, scale: float | None
) -> list[float]:
    """What to multiply the base (if there is one) and each checkpoint with; they sum to 1."""
    needed = 1 if base is not None else 2
    if len(checkpoints) < needed:
        raise CheckpointError(
            f"{len(checkpoints)} checkpoints to average", f"{needed} or more", "name all that are to be averaged"
        )
    if (base is None) != (scale is None) or (scale is not None and not math.isfinite(scale)):
        raise CheckpointError(
            f"base {base}, scale {scale}", "both of them, with a finite scale, or neither", "add the other one"
        )
    weights = [1 / len(checkpoints)] * len(checkpoints) if weights is None else list(weights)
    if len(weights) != len(checkpoints):
        raise CheckpointError(
            f"{len(weights)} weights for {len(checkpoints)} checkpoints", "one weight each", "correct --weights"
        )
    total = math.fsum(weights)
    if not (all(weight > 0 for weight in weights) and abs(total - 1) <= SUM_TOLERANCE):
        raise CheckpointError(
            f"weights {', '.join(map(str, weights))} with sum {total:.12g}",
            "weights above 0 with sum 1",
            "correct --weights, or leave it out for equal ones",
        )
    return weights if scale is None else [1 - scale, *(scale * weight for weight in weights)]


def _check_same_network(terms: Sequence[_Term]) -> None:
    """Refuse other sizes; tell of another tokenizer, because the output has the first one's."""
    first = terms[0].source
    for term in terms[1:]:
        wrong = differences(first.model, term.source.model)
        if wrong:
            raise CheckpointError(
                f"{first.folder} and {term.source.folder} are different networks: {', '.join(wrong)}",
                "checkpoints of one network",
                "average what one run or its branches left",
            )
        paths = [one.processor_folder / _TOKENIZER for one in (first, term.source)]
        if all(path.is_file() for path in paths) and paths[0].read_bytes() != paths[1].read_bytes():
            logger.warning("%s and %s differ: the output gets the first", *paths)


def _content(terms: Sequence[_Term], dtype: torch.dtype | None) -> Content:
    """The mean as something to write; opened and checked, but not yet read."""
    tables = [hf_specs(term.source, checked_bindings(term.source)) for term in terms]
    first = terms[0].source
    specs = {
        key: TensorSpec(spec.shape, dtype or reduce(torch.promote_types, (table[key].dtype for table in tables)))
        for key, spec in tables[0].items()
    }
    return Content(
        model=first.model,
        bound=checked_bindings(first),
        specs=specs,
        read=partial(_mean, terms, specs),
        folders=tuple(term.source.folder for term in terms),
        processor_folder=first.processor_folder,
        options=repr([(str(term.source.folder), term.factor) for term in terms]),
    )


def _mean(terms: Sequence[_Term], specs: dict[str, TensorSpec], one: Binding) -> tuple[torch.Tensor, ...]:
    """One group's weighted sums in Hugging Face layout, in the dtypes of `specs`."""
    if not has_row_blocks(one):
        readers = [iter([read_hf_group(term.source, one)]) for term in terms]
        return _sums(terms, readers, specs, one)
    (key,), (shape,) = one.hf_keys, one.hf_shapes
    num_rows = max(1, _BLOCK_VALUES // math.prod(shape[1:]))
    readers = [((block,) for block in term.rows.read(one, num_rows)) for term in terms]
    result = torch.empty(shape, dtype=specs[key].dtype)
    for into in result.split(num_rows):
        (mean,) = _sums(terms, readers, specs, one)
        into.copy_(mean)
    return (result,)


def _sums(
    terms: Sequence[_Term], readers: Sequence[Iterator[tuple[torch.Tensor, ...]]], specs: dict, one: Binding
) -> tuple[torch.Tensor, ...]:
    """The weighted sums of what the readers, one for each term, give next: a group's tensors, or rows of them."""
    totals = []
    for term, reader in zip(terms, readers, strict=True):
        parts = next(reader)
        # -0.0 is what changes nothing when it is added to: 0.0 would turn a -0.0 of all inputs into 0.0.
        totals = totals or [torch.full(part.shape, -0.0, dtype=torch.float64) for part in parts]
        for key, total, part in zip(one.hf_keys, totals, parts, strict=True):
            _add(total.view(-1), part, term.factor, f"{key} ({one.megatron_key}) in {term.source.folder}")
    return tuple(_rounded(total, specs[key].dtype, key) for key, total in zip(one.hf_keys, totals, strict=True))


def _add(total: torch.Tensor, part: torch.Tensor, factor: float, name: str) -> None:
    """Add factor * part to a flat float64 tensor, in place."""
    for into, values in zip(total.split(_BLOCK_VALUES), part.reshape(-1).split(_BLOCK_VALUES), strict=True):
        wide = values.double()
        if not wide.sum().isfinite():  # finite float32s cannot overflow it, and NaN or infinity cannot leave it
            raise CheckpointError(
                f"{name} holds NaN or infinity",
                "finite weights: one such value would spoil every mean that it enters",
                "leave this checkpoint out and take one from before the run diverged",
            )
        into.add_(wide.mul_(factor))


def _rounded(total: torch.Tensor, dtype: torch.dtype, key: str) -> torch.Tensor:
    result = total.to(dtype)
    if not result.isfinite().all():
        raise CheckpointError(
            f"the result for {key} reaches {total.abs().max().item():.3g}",
            f"values that {dtype} holds",
            "use a smaller --scale or another --dtype",
        )
    return result


def _origin(term: _Term) -> dict[str, object]:
    """What provenance says of one input: its path, its weight, and the step it was saved after (None: unknown)."""
    folder = term.source.folder
    step = step_of(folder) if isinstance(term.source, MegatronCheckpoint) else None
    return {"path": str(folder.absolute()), "weight": term.factor, "step": step}


def _command(
    out: str | Path,
    checkpoints: Sequence[str | Path],
    weights: Sequence[float] | None,
    base: str | Path | None,
    scale: float | None,
    dtype: str,
    hf: bool,
) -> list[str]:
    """The command that writes the same again."""
    words = ["medx", "convert", "average", str(out), *map(str, checkpoints)]
    words += [] if weights is None else ["--weights", ",".join(map(str, weights))]
    words += [] if base is None else ["--base", str(base), "--scale", str(scale)]
    words += [] if dtype == "keep" else ["--dtype", dtype]
    return [*words, "--hf"] if hf else words
