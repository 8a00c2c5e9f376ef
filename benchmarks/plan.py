"""What planning costs: seconds and memory until row j of a run is known, and how full the rows are.

    python -m benchmarks.plan

Limits: no joining makes fewer rows than the samples' tokens fill; and a cost in proportion to the samples. Target: 10
million samples in under 60 s and 2 GB, and no sample of them twice as dear as one of a million.

Lengths are log-normal (median 400 tokens, one in 1,000 above 12,000), rows 16,384 tokens. Each size is planned in a
process of its own, whose peak memory is counted whole: Python, numpy and the lengths included.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from megatron_medx.data.plan import RowPlan

NUM_SAMPLES = (1_000_000, 3_000_000, 10_000_000)

SEQ_LEN_TOKENS = 16_384

MOST_SECONDS, MOST_BYTES, MOST_GROWTH = 60.0, 2e9, 2.0
"""Targets, asked of the largest size; growth is its seconds a sample over those of the smallest."""


def skewed_lengths(count: int) -> np.ndarray:
    """(count,) int32 tokens of seeded samples."""
    normal = np.random.Generator(np.random.Philox(13)).standard_normal(count, dtype=np.float32)
    return np.clip(400 * np.exp(1.1 * normal), 8, SEQ_LEN_TOKENS).astype(np.int32)


def measure(count: int) -> dict[str, float]:
    """Plan so many samples and ask for one row: seconds, rows over the fewest possible, waste and peak bytes."""
    lengths = skewed_lengths(count)
    start_s = time.perf_counter()
    plan = RowPlan(lengths, SEQ_LEN_TOKENS, packing=True, seed=1)
    plan.row(0)
    seconds = time.perf_counter() - start_s
    fewest_rows = -(-int(lengths.sum(dtype=np.int64)) // SEQ_LEN_TOKENS)
    return {
        "samples": count,
        "seconds": round(seconds, 3),
        "peak_bytes": _peak_bytes(),
        "waste": round(plan.waste, 5),
        "rows_over_fewest": round(plan.rows_per_epoch / fewest_rows, 5),
    }


def _peak_bytes() -> int:
    """Most memory that this process has had. (`getrusage` would count the process that started it.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and one JSON line; 0 when the targets are reached, 1 when one is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=NUM_SAMPLES, help="sizes, ascending")
    chosen = parser.parse_args(arguments)

    print("   samples   seconds   us a sample   peak memory     waste   rows over fewest")
    found = []
    for count in chosen.samples:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as alone:
            found.append(alone.submit(measure, count).result())
        row = found[-1]
        print(f"{count:10,}   {row['seconds']:7.2f}   {row['seconds'] / count * 1e6:11.2f}", end="")
        print(f"   {row['peak_bytes'] / 1e6:8,.0f} MB   {row['waste']:7.3%}   {row['rows_over_fewest']:16.5f}")
    first, last = found[0], found[-1]
    growth = last["seconds"] / last["samples"] / (first["seconds"] / first["samples"])
    reached = last["seconds"] < MOST_SECONDS and last["peak_bytes"] < MOST_BYTES and growth < MOST_GROWTH
    print(f"\n{last['samples']:,} samples: {growth:.2f} times the seconds a sample of {first['samples']:,}")
    print(f"target: under {MOST_SECONDS:.0f} s, {MOST_BYTES / 1e9:.0f} GB and {MOST_GROWTH:.0f} times: ", end="")
    print("reached" if reached else "MISSED")
    targets = {"seconds": MOST_SECONDS, "peak_bytes": MOST_BYTES, "growth": MOST_GROWTH}
    summary = {"benchmark": "plan", "sizes": found, "growth": round(growth, 3), "targets": targets, "reached": reached}
    print(json.dumps(summary))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
