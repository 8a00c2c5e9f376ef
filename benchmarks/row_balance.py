"""How evenly the rows of a step are dealt to data-parallel ranks, by estimated cost.

    python -m benchmarks.row_balance

Rival: round robin, row r to rank r mod D. Limit: no deal of equally many rows is below the mean, or below the costliest
row with the cheapest ones beside it. Target: with 8 packed rows a rank, the slowest of 8 and of 64 ranks within 5 % of
the mean.

Samples are skewed: text log-normal (median 300 tokens), half of them with 1 to 8 images whose longer side is log-normal
(median 256 px). They are joined into rows of 8,192 tokens by the plan; costs are FLOPs of Qwen3-VL-8B, forward and
backward. Every figure is the slowest rank's cost over the mean rank's, both summed over steps: ranks wait for one
another in each. The table shows fewer rows, with which a single costly row decides, and rows of one sample each, which
nothing evens out before the deal does.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.vision_balance import skewed_grids
from megatron_medx.config.flops import step_flops
from megatron_medx.data.plan.mixture import MixtureSource
from megatron_medx.data.plan.row_plan import RowPlan
from megatron_medx.data.plan.table import TABLE
from megatron_medx.parallel.row_dealing import deal_rows
from megatron_medx.recipes.sizes import qwen3_vl_8b

NUM_RANKS = (8, 64)

TARGET = 1.05
"""Largest cost of the slowest rank over the mean that passes, for each number of ranks."""

SEQ_LEN_TOKENS = 8192

TABLE_ROWS = (1, 2, 4, 8, 16, 32)
"""Rows per rank of the table."""


def skewed_samples(count: int) -> tuple[list[int], list[int]]:
    """Tokens and FLOPs of `count` seeded samples, text and images; those that no row could hold are left out."""
    text, images, has_images = (np.random.Generator(np.random.Philox([11, stream])) for stream in range(3))
    text_tokens = np.clip(300 * np.exp(text.normal(0, 1, count)), 16, 6000).astype(int)
    num_images = np.where(has_images.random(count) < 0.5, np.clip(images.geometric(0.6, count), 1, 8), 0)
    model = qwen3_vl_8b()
    patches = [height * width for height, width in skewed_grids(int(num_images.sum()))]
    lengths, costs, at = [], [], 0
    for tokens, number in zip(text_tokens.tolist(), num_images.tolist(), strict=True):
        of_sample = patches[at : at + number]
        at += number
        tokens += sum(of_sample) // model.vision.merge_size**2
        if tokens <= SEQ_LEN_TOKENS:
            lengths.append(tokens)
            costs.append(step_flops(model, [tokens], of_sample)["total"])
    return lengths, costs


def row_costs(lengths: list[int], sample_costs: Sequence[int], packing: bool) -> list[float]:
    """Estimated cost of every row of an epoch, as `RowDataset.cost` has it: samples, and padding as a segment."""
    table = np.zeros(len(lengths), TABLE)
    table["tokens"], table["cost"] = lengths, sample_costs
    mixture = [MixtureSource(Path("made up"))]
    plan = RowPlan([table], mixture, seq_len_tokens=SEQ_LEN_TOKENS, packing=packing, seed=1)
    rows = range(plan.rows_per_epoch)
    costs = [plan.cost(j) for j in rows]
    if packing:
        tails = [SEQ_LEN_TOKENS - sum(lengths[sample] for _, sample in plan.row(j)) for j in rows]
        costs = [cost + step_flops(qwen3_vl_8b(), [tail], [])["total"] for cost, tail in zip(costs, tails, strict=True)]
    return costs


def balance(costs: Sequence[int], num_ranks: int, rows_per_rank: int, max_steps: int) -> dict[str, float]:
    """Slowest rank's cost over the mean for the deal, round robin and the limit; at most so many steps of an epoch."""
    rows = num_ranks * rows_per_rank
    num_steps = min(max_steps, len(costs) // rows)
    assert num_steps, f"{len(costs)} rows are less than one step of {rows}"
    totals, mean = dict.fromkeys(("dealt", "round_robin", "limit"), 0.0), 0.0
    for step in range(num_steps):
        of_step = costs[step * rows :][:rows]
        mean += sum(of_step) / num_ranks
        ways = {
            "dealt": deal_rows(of_step, num_ranks),
            "round_robin": [range(rank, rows, num_ranks) for rank in range(num_ranks)],
        }
        for way, shares in ways.items():
            totals[way] += max(sum(of_step[row] for row in share) for share in shares)
        cheapest = sum(sorted(of_step)[: rows_per_rank - 1])
        totals["limit"] += max(max(of_step) + cheapest, sum(of_step) / num_ranks)
    return {way: total / mean for way, total in totals.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and one JSON line; 0 when the target is reached, 1 when it is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.row_balance", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8, help="packed rows per rank (default %(default)s)")
    parser.add_argument("--samples", type=int, default=200_000, help="of the corpus (default %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="at most, for each figure (default %(default)s)")
    parser.add_argument("--no-table", action="store_true", help="only the figure that the target is asked of")
    chosen = parser.parse_args(arguments)

    lengths, sample_costs = skewed_samples(chosen.samples)
    print(f"{len(lengths):,} samples of {np.mean(lengths):,.0f} tokens on average, rows of {SEQ_LEN_TOKENS:,} tokens")
    print("Estimated cost (Qwen3-VL-8B, forward and backward) of the slowest rank over the mean\n")
    packed = row_costs(lengths, sample_costs, packing=True)
    if not chosen.no_table:
        _print_table("packed", packed, chosen.steps)
        _print_table("one sample a row", row_costs(lengths, sample_costs, packing=False), chosen.steps)
    results = {ranks: balance(packed, ranks, chosen.rows, chosen.steps) for ranks in NUM_RANKS}
    reached = all(found["dealt"] <= TARGET for found in results.values())
    for ranks, found in results.items():
        ratio = found["round_robin"] / found["dealt"]
        print(f"{ranks} ranks, {chosen.rows} packed rows each: dealt (ours) {found['dealt']:.3f}, ", end="")
        print(f"round robin {found['round_robin']:.3f} ({ratio:.2f}x), limit {found['limit']:.3f}")
    print(f"target: dealt <= {TARGET:.2f} on both: {'reached' if reached else 'MISSED'}")
    summary = {"benchmark": "row_balance", "rows_per_rank": chosen.rows, "samples": len(lengths)}
    for ranks, found in results.items():
        summary[f"ranks_{ranks}"] = {way: round(value, 4) for way, value in found.items()}
        summary[f"ranks_{ranks}"]["ratio_to_round_robin"] = round(found["dealt"] / found["round_robin"], 4)
    print(json.dumps(summary | {"target": TARGET, "reached": reached}))
    return 0 if reached else 1


def _print_table(name: str, costs: Sequence[int], max_steps: int) -> None:
    print(f"{name:16}   ranks   rows per rank   dealt   round robin   limit")
    for ranks in NUM_RANKS:
        for rows in TABLE_ROWS:
            if ranks * rows <= len(costs):
                found = balance(costs, ranks, rows, max_steps)
                print(f"{'':16}   {ranks:5}   {rows:13}   {found['dealt']:5.3f}", end="")
                print(f"   {found['round_robin']:11.3f}   {found['limit']:5.3f}")
    print()


if __name__ == "__main__":
    sys.exit(main())
