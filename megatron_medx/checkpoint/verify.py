"""Compare two sets of weights of one network, each a Hugging Face directory or a Megatron checkpoint; hash one.

Every tensor is compared bit for bit in Hugging Face layout; where memory allows both networks are also run on the same
images and text, so that a wrong config.json or a wrong rule of conversion shows, which no comparison of tensors can
see. A hash table says the same across machines: it is made of values in Hugging Face layout, so a checkpoint and its
export have the same one, whatever grid or shards they were written in.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_medx.checkpoint.layout.rules import bindings
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.reports.inspection import open_with_bindings
from megatron_medx.checkpoint.reports.report_file import check_report_file, write_report_file
from megatron_medx.checkpoint.reports.tensor_norms import distance
from megatron_medx.checkpoint.running.logits import Sample, available_bytes, compare_outputs, fixed_sample, needed_bytes
from megatron_medx.checkpoint.weights import Weights, hf_specs, open_weights, read_hf_group, shared_bindings
from megatron_medx.checkpoint.writing.progress import byte_progress
from megatron_medx.config.differences import differences
from megatron_medx.errors import CheckpointError

NUM_WORST = 5
"""Tensors listed when something differs."""
LOGITS_LIMIT_BYTES = 150_000_000_000
"""Largest model, in fp32, that is run however much memory there is: above it minutes become hours."""


def verify(
    first: str | Path,
    second: str | Path,
    *,
    hashes: str | Path | None = None,
    samples: Sequence[Sample] = (),
    tensors_only: bool = False,
) -> dict:
    """Compare every tensor, and what both networks make of the same images and text where they fit into memory.

    Args:
        first, second: a Hugging Face directory, a checkpoint root, or an iter_ folder each.
        hashes: file for the hash table of `first` (see `hash_table`), made while it is read anyway.
        samples: what both networks are run on; empty for the fixed one, random text around two random images.
        tensors_only: True runs neither network.
    Returns:
        `bit_equal`, `num_tensors` (in Hugging Face layout), `num_different`, `first_difference` (the first tensor, in
        the order of the network, that differs; None where none does), `worst` (the tensors that differ most),
        `logits_max_abs_diff`, `loss_first` and `loss_second` (mean cross entropy of the next token, in nats; these
        three are None where the networks were not run, or where a value is not finite), `logits_note` (why they were
        not run; empty otherwise).
        A tensor is given by `name`, `megatron_name`, `max_abs_diff` and `dtypes`. Differences are None where only one
        side is NaN or infinite.
    Raises:
        CheckpointError: either cannot be read whole, they are networks of different sizes, or `hashes` cannot be
            written.
    """
    if hashes is not None:
        check_report_file(Path(hashes))
    weights = open_weights(Path(first)), open_weights(Path(second))
    _check_same_model(*weights)
    lines: dict[str, str] | None = None if hashes is None else {}
    num_tensors, different = _compare_tensors(*weights, lines)
    if hashes is not None:
        _write_table(Path(hashes), lines)
    worst = sorted(different, key=lambda entry: -math.inf if entry["max_abs_diff"] is None else -entry["max_abs_diff"])
    return {
        "bit_equal": not different,
        "num_tensors": num_tensors,
        "num_different": len(different),
        "first_difference": different[0] if different else None,
        "worst": worst[:NUM_WORST],
        **_compare_outputs(*weights, samples or [fixed_sample(weights[0].model)], tensors_only),
    }


def hash_table(path: str | Path, file: str | Path) -> int:
    """Write the hash of every tensor, so that `diff` compares two machines, and return the number of tensors.

    Args:
        path: a Hugging Face directory, a checkpoint root, a run folder or an iter_ folder.
        file: to be written: lines `sha256  dtype  shape  name`, by name, of the tensors in the hub's names and layout;
            the hash is of their little-endian bytes, the shape is `2560x4096`.
    Raises:
        CheckpointError: the weights cannot be read whole, or the file cannot be written.
    """
    check_report_file(Path(file))
    weights, bound, _ = open_with_bindings(Path(path))
    lines: dict[str, str] = {}
    with byte_progress("hash", sum(spec.num_bytes for spec in weights.specs.values())) as advance:
        for one in bound:
            for key, tensor in zip(one.hf_keys, read_hf_group(weights, one), strict=True):
                lines[key] = _hash_line(key, tensor)
                advance(tensor.nbytes)
    _write_table(Path(file), lines)
    return len(lines)


def _write_table(file: Path, lines: dict[str, str]) -> None:
    write_report_file(file, "".join(f"{lines[key]}\n" for key in sorted(lines)))


def _hash_line(key: str, tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(_values(tensor).numpy()).hexdigest()
    return f"{digest}  {_name(tensor.dtype)}  {'x'.join(map(str, tensor.shape))}  {key}"


def _check_same_model(first: Weights, second: Weights) -> None:
    wrong = differences(first.model, second.model)
    if wrong:
        raise CheckpointError(
            f"{first.folder} and {second.folder} are different networks: {', '.join(wrong)}",
            "two sets of weights of one network",
            "compare a checkpoint with what it was converted from; `medx convert diff` takes any two",
        )


def _compare_tensors(first: Weights, second: Weights, lines: dict[str, str] | None) -> tuple[int, list[dict]]:
    """Number of tensors, and a report of each that is not bit-equal, in the network's order.

    Args:
        first, second: opened weights of one network.
        lines: filled with the hash line of each tensor of `first`, by name; None where no table is wanted.
    """
    bound, different = shared_bindings(first, second), []
    specs = hf_specs(first, bound)
    with byte_progress("verify", sum(spec.num_bytes for spec in specs.values())) as advance:
        for one in bound:
            groups = zip(one.hf_keys, read_hf_group(first, one), read_hf_group(second, one), strict=True)
            for key, left, right in groups:
                if lines is not None:
                    lines[key] = _hash_line(key, left)
                if not bit_equal(left, right):
                    different.append(_difference(key, one.megatron_key, left, right))
                advance(left.nbytes)
    return len(specs), different


def bit_equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """True where two tensors have one dtype, one shape and the same bytes (so NaN equals itself and 0 is not -0)."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(_values(left), _values(right))


def _values(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor's values, in order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _difference(key: str, megatron_key: str, left: torch.Tensor, right: torch.Tensor) -> dict:
    return {
        "name": key,
        "megatron_name": megatron_key,
        "max_abs_diff": max_abs_diff(left, right),
        "dtypes": [_name(one.dtype) for one in (left, right)],
    }


def max_abs_diff(left: torch.Tensor, right: torch.Tensor) -> float | None:
    """Largest difference of two tensors of one shape; None where a NaN or an infinity stands on one side only.

    None, because JSON has no infinity. Where both sides hold the same NaN or infinity, nothing differs.
    """
    return distance(left, right).max_abs_diff


def _compare_outputs(first: Weights, second: Weights, samples: Sequence[Sample], tensors_only: bool) -> dict:
    """The part of the result that both networks must be run for, or the reason why they are not."""
    note = "only tensors were to be compared" if tensors_only else _reason_not_to_run(first, second, samples)
    if note:
        return {"logits_max_abs_diff": None, "loss_first": None, "loss_second": None, "logits_note": note}
    outputs = compare_outputs(first, second, samples)
    loss_first, loss_second = outputs.losses
    return {
        "logits_max_abs_diff": outputs.logits_max_abs_diff,
        "loss_first": loss_first,
        "loss_second": loss_second,
        "logits_note": "",
    }


def _reason_not_to_run(first: Weights, second: Weights, samples: Sequence[Sample]) -> str:
    """Why the two networks cannot be run here; empty where they can."""
    bound = shared_bindings(first, second)
    if len(bound) < len(bindings(first.model)):
        return "a part of a network is not run"
    num_bytes = sum(TensorSpec(spec.shape, torch.float32).num_bytes for spec in hf_specs(first, bound).values())
    if num_bytes > LOGITS_LIMIT_BYTES:
        limit = f"{LOGITS_LIMIT_BYTES / 1e9:.0f} GB"
        return f"the model has {num_bytes / 1e9:.1f} GB in fp32; above {limit} it is not run"
    needed, available = needed_bytes(first.model, num_bytes, samples), available_bytes()
    if needed > available:
        return f"to run the model in fp32 takes {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available"
    return ""
