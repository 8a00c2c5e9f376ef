"""The mixture that a run was planned with, from the plan in its folder: what realised shares are compared with.

The plan is the one that `data/plan/prepare.py` writes at each launch; data folders themselves are not looked at.
"""

import itertools
from pathlib import Path

import orjson

from megatron_medx.run_folder.names import DATA
from megatron_medx.run_folder.sources import source_names

PLAN_FILE = "plan.json"
"""In the folder `data` of a run: `counts` by data folder, in the order of the mixture, and `pieces`."""


def planned_shares(folder: Path, tokens: float) -> dict[str, float]:
    """Share of tokens of each source, by the name that metrics call it, at one token of the run; none without a plan.

    Args:
        folder: of the run.
        tokens: of the run so far, for mixtures whose weights change along it.

    Weights are linear between their knots (data/plan/mixture.py); without weights shares are in proportion to the
    folders' tokens. A source that has reached its max_epochs gives way, which is not followed here.
    """
    try:
        plan = orjson.loads((folder / DATA / PLAN_FILE).read_bytes())
        counts, pieces = plan["counts"], plan["pieces"]
        weights = [
            summary["num_tokens"] if knots is None else _weight_at(knots, tokens)
            for number, summary in enumerate(counts.values())
            for knots in [pieces.get(f"source {number}: weight")]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):  # of another version, or none
        return {}
    total = sum(weights)
    names = source_names(list(counts))
    return {name: weight / total for name, weight in zip(names, weights, strict=True)} if total > 0 else {}


def _weight_at(knots: list[list[float]], tokens: float) -> float:
    """Example: knots [[0, 0.2], [100, 0.6]] weigh 0.3 at 25 tokens, and 0.6 from 100 on."""
    if tokens <= knots[0][0]:
        return knots[0][1]
    for (left, low), (right, high) in itertools.pairwise(knots):
        if tokens <= right:
            return low + (high - low) * (tokens - left) / (right - left)
    return knots[-1][1]
