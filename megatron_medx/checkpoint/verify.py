"""Compare two sets of weights, each a Hugging Face directory or a Megatron checkpoint.

Every tensor is compared bit for bit in Hugging Face layout; small models are also run, so that a wrong config.json
shows, which no comparison of tensors can see.
"""

import math
from pathlib import Path

import torch

from megatron_medx.checkpoint.convert import Weights, checked_bindings, hf_specs, open_weights, read_hf_group
from megatron_medx.checkpoint.logits import logits_of
from megatron_medx.checkpoint.progress import byte_progress
from megatron_medx.checkpoint.tensor_spec import TensorSpec
from megatron_medx.config.differences import differences
from megatron_medx.errors import CheckpointError

NUM_WORST = 5
"""Tensors listed when something differs."""
LOGITS_LIMIT_BYTES = 3_000_000_000
"""Largest model, in fp32, that is also run."""


def verify(first: str | Path, second: str | Path) -> dict:
    """Compare every tensor, and the logits where the model is small.

    Args:
        first, second: a Hugging Face directory, a checkpoint root, or an iter_ folder each.
    Returns:
        `bit_equal`, `num_tensors` (in Hugging Face layout), `num_different`, `worst` (the tensors that differ most:
        `name`, `megatron_name`, `max_abs_diff`, `dtypes`), `logits_max_abs_diff` (None where the models were not
        run), `logits_note` (why not; empty otherwise). Differences are None where only one side is NaN or infinite.
    Raises:
        CheckpointError: either cannot be read whole, or they are networks of different sizes.
    """
    weights = open_weights(Path(first)), open_weights(Path(second))
    _check_same_model(*weights)
    num_tensors, different = _compare_tensors(*weights)
    different.sort(key=lambda entry: -math.inf if entry["max_abs_diff"] is None else -entry["max_abs_diff"])
    difference, note = _compare_logits(*weights)
    return {
        "bit_equal": not different,
        "num_tensors": num_tensors,
        "num_different": len(different),
        "worst": different[:NUM_WORST],
        "logits_max_abs_diff": difference,
        "logits_note": note,
    }


def _check_same_model(first: Weights, second: Weights) -> None:
    wrong = differences(first.model, second.model)
    if wrong:
        raise CheckpointError(
            f"{first.folder} and {second.folder} are different networks: {', '.join(wrong)}",
            "two sets of weights of one network",
            "compare a checkpoint with what it was converted from",
        )


def _compare_tensors(first: Weights, second: Weights) -> tuple[int, list[dict]]:
    """Number of tensors, and a report of each that is not bit-equal."""
    bound, different = checked_bindings(first), []
    checked_bindings(second)
    specs = hf_specs(first, bound)
    with byte_progress("verify", sum(spec.num_bytes for spec in specs.values())) as advance:
        for one in bound:
            groups = zip(one.hf_keys, read_hf_group(first, one), read_hf_group(second, one), strict=True)
            for key, left, right in groups:
                if not bit_equal(left, right):
                    different.append(_difference(key, one.megatron_key, left, right))
                advance(left.nbytes)
    return len(specs), different


def bit_equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """True where two tensors have one dtype, one shape and the same bytes (so NaN equals itself and 0 is not -0)."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(*(one.contiguous().reshape(-1).view(torch.uint8) for one in (left, right)))


def _difference(key: str, megatron_key: str, left: torch.Tensor, right: torch.Tensor) -> dict:
    return {
        "name": key,
        "megatron_name": megatron_key,
        "max_abs_diff": max_abs_diff(left, right),
        "dtypes": [str(one.dtype).removeprefix("torch.") for one in (left, right)],
    }


def max_abs_diff(left: torch.Tensor, right: torch.Tensor) -> float | None:
    """Largest difference of two tensors of one shape; None where a NaN or an infinity stands on one side only.

    None, because JSON has no infinity. Where both sides hold the same NaN or infinity, nothing differs.
    """
    same = (left == right) | (left.isnan() & right.isnan())
    difference = (left.double() - right.double()).abs().masked_fill(same, 0.0)
    return difference.max().item() if difference.isfinite().all() else None


def _compare_logits(first: Weights, second: Weights) -> tuple[float | None, str]:
    """Largest difference of the two networks' logits on one fixed input, or None and the reason."""
    bound = checked_bindings(first)
    num_bytes = sum(TensorSpec(spec.shape, torch.float32).num_bytes for spec in hf_specs(first, bound).values())
    if num_bytes > LOGITS_LIMIT_BYTES:
        limit = f"{LOGITS_LIMIT_BYTES / 1e9:.0f} GB"
        return None, f"the model has {num_bytes / 1e9:.1f} GB in fp32; above {limit} it is not run"
    left, right = logits_of(first), logits_of(second)
    return max_abs_diff(left, right), ""
