"""How far any two sets of weights lie apart, also of two networks; each a Hugging Face directory or a checkpoint.

Tensors are matched by their name in the hub's vocabulary and compared in the hub's layout, where one side's is
another's whatever format or grid they were written in. `verify.py` answers the narrower question whether a conversion
lost a bit. `diff_lines.py` makes the text.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_medx.checkpoint.layout.rules import Binding
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.reports.inspection import open_with_bindings, part_of_keys, read_run
from megatron_medx.checkpoint.reports.tensor_norms import distance
from megatron_medx.checkpoint.verify import bit_equal
from megatron_medx.checkpoint.weights import Weights, hf_specs, read_hf_group
from megatron_medx.checkpoint.writing.progress import byte_progress
from megatron_medx.config.differences import differences
from megatron_medx.config.run import PARTS


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two, opened."""

    weights: Weights
    binding_of: dict[str, Binding]
    """Name in the hub's vocabulary -> the group that the tensor is read with."""
    specs: dict[str, TensorSpec]
    """Shapes and dtypes in the hub's layout."""

    def describe(self, key: str) -> dict:
        """What a tensor is, where only one side has it."""
        spec = self.specs[key]
        return {
            "name": key,
            "megatron_name": self.binding_of[key].megatron_key,
            "shape": list(spec.shape),
            "dtype": _dtype_name(spec),
        }


def diff(first: str | Path, second: str | Path) -> dict:
    """Compare configuration and tensors, as a dictionary that JSON can hold.

    Args:
        first, second: a Hugging Face directory, a checkpoint root, a run folder or an iter_ folder each.
    Returns:
        `equal`: the networks have the same sizes and the same tensors, bit for bit and dtype for dtype (a difference
        of the runs alone leaves them equal); `folders`; `network_differences` and `run_differences` (lines; the
        second only between two checkpoints that runs wrote); `only_in_first`, `only_in_second` (`name`,
        `megatron_name`, `shape`, `dtype`); `other_shapes` (`name`, `megatron_names`, `shapes`, `dtypes`);
        `different`, the largest first (`name`, `megatron_names`, `part`, `dtypes`, and the fields of Distance);
        `parts` (part -> `compared`, `different`). Pairs are in the order of the arguments.
    Raises:
        CheckpointError: either is not readable as a whole network.
        ConfigError: a run.yaml cannot be read.
    """
    one, other = _open(Path(first)), _open(Path(second))
    shared = [key for key in one.specs if key in other.specs]
    comparable = [key for key in shared if one.specs[key].shape == other.specs[key].shape]
    part_of = part_of_keys(one.weights.model)
    parts = {key: part_of[one.binding_of[key].megatron_key] for key in comparable}
    found = {
        "network_differences": differences(one.weights.model, other.weights.model),
        "only_in_first": [one.describe(key) for key in one.specs if key not in other.specs],
        "only_in_second": [other.describe(key) for key in other.specs if key not in one.specs],
        "other_shapes": [
            {
                **_pair(one, other, key),
                "shapes": [list(side.specs[key].shape) for side in (one, other)],
            }
            for key in shared
            if key not in parts
        ],
        "different": [{**entry, "part": parts[entry["name"]]} for entry in _compared(one, other, comparable)],
    }
    return {
        "equal": not any(found.values()),
        "folders": [str(side.weights.folder) for side in (one, other)],
        "run_differences": _run_differences(one.weights, other.weights),
        **found,
        "parts": {
            part: {
                "compared": list(parts.values()).count(part),
                "different": sum(entry["part"] == part for entry in found["different"]),
            }
            for part in PARTS
        },
    }


def _open(path: Path) -> _Side:
    weights, bound, _ = open_with_bindings(path)
    return _Side(weights, {key: group for group in bound for key in group.hf_keys}, hf_specs(weights, bound))


def _run_differences(first: Weights, second: Weights) -> list[str]:
    """Fields of two runs that differ, but for the network's, which are told apart; none where one is no run's."""
    runs = read_run(first), read_run(second)
    return [line for line in differences(*runs) if not line.startswith("model.")] if all(runs) else []


def _pair(one: _Side, other: _Side, key: str) -> dict:
    """What is said of every tensor that both sides have."""
    sides = (one, other)
    return {
        "name": key,
        "megatron_names": [side.binding_of[key].megatron_key for side in sides],
        "dtypes": [_dtype_name(side.specs[key]) for side in sides],
    }


def _compared(one: _Side, other: _Side, comparable: list[str]) -> list[dict]:
    """A report of each tensor that is not bit-equal: first those of unknown distance, then the farthest apart."""
    wanted, different = set(comparable), []
    # The tables put a name into one group only, with the same companions in every network that has it.
    groups = dict.fromkeys(one.binding_of[key].hf_keys for key in comparable)
    with byte_progress("diff", sum(one.specs[key].num_bytes for key in comparable)) as advance:
        for keys in groups:
            read = (read_hf_group(side.weights, side.binding_of[keys[0]]) for side in (one, other))
            for key, left, right in zip(keys, *read, strict=True):
                if key in wanted:
                    if not bit_equal(left, right):
                        different.append({**_pair(one, other, key), **asdict(distance(left, right))})
                    advance(left.nbytes)
    return sorted(different, key=lambda entry: -math.inf if entry["relative_diff"] is None else -entry["relative_diff"])


def _dtype_name(spec: TensorSpec) -> str:
    return str(spec.dtype).removeprefix("torch.")
