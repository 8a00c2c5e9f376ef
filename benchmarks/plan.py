"""What planning costs: seconds and memory from an index to the last row of an epoch, and how full the rows are.

    python -m benchmarks.plan

Limits: no joining makes fewer rows than the samples' tokens fill; and a cost in proportion to the samples. Target: 10
million samples in under 60 s and 2 GB, and no sample of them twice as dear as one of a million.

Made-up samples: text log-normal (median 300 tokens, 8 to 6,000), 4 in 10 with 1 to 3 pictures of 200 to 700 px a side,
and one in 1,000 a volume of 40 to 160 slices of 512 x 512 px, of which most must lose slices. Rows have 16,384 tokens.
Each size is measured in a process of its own, whose peak memory is counted whole: Python, numpy, and the table as far
as it is mapped. It writes the table of an index.parquet on disk, then plans every block of the first epoch; a run
plans only those blocks that it comes to.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_medx.config.flops import flops_polynomial
from megatron_medx.data.index import INDEX_FILE, INDEX_SCHEMA
from megatron_medx.data.plan.mixture import MixtureSource
from megatron_medx.data.plan.row_plan import RowPlan
from megatron_medx.data.plan.table import TableSettings, open_table, write_table
from megatron_medx.recipes.sizes import qwen3_vl_8b

NUM_SAMPLES = (1_000_000, 3_000_000, 10_000_000)

SEQ_LEN_TOKENS = 16_384

MOST_SECONDS, MOST_BYTES, MOST_GROWTH = 60.0, 2e9, 2.0
"""Targets, asked of the largest size; growth is its CPU seconds a sample over those of the smallest."""

GROUP_ROWS = 100_000
"""Rows of the index that are made at a time."""


def write_index(folder: Path, count: int) -> None:
    """index.parquet of so many seeded samples."""
    with pq.ParquetWriter(folder / INDEX_FILE, INDEX_SCHEMA) as writer:
        for start in range(0, count, GROUP_ROWS):
            writer.write_batch(skewed_samples(start, min(GROUP_ROWS, count - start)))


def skewed_samples(start: int, count: int) -> pa.RecordBatch:
    """`count` rows of an index, from number `start` on."""
    rng = np.random.Generator(np.random.Philox([13, start]))
    numbers = np.arange(start, start + count)
    text_tokens = np.clip(300 * np.exp(rng.normal(0, 1, count)), 8, 6000).astype(np.int32)
    is_volume = rng.random(count) < 0.001
    num_images = np.where(rng.random(count) < 0.4, rng.integers(1, 4, count), 0)
    num_images = np.where(is_volume, rng.integers(40, 161, count), num_images)
    of_volume = np.repeat(is_volume, num_images)
    sides = np.where(of_volume, 512, rng.integers(200, 701, (2, of_volume.size))).astype(np.int32)
    spans = np.where(of_volume, 9, 0).astype(np.int32)
    hashes = pa.py_buffer(rng.bytes(32 * count))
    borders = np.concatenate(([0], np.cumsum(num_images))).astype(np.int32)
    names = pa.array([f"{number:09}" for number in numbers.tolist()])
    columns = {
        "key": names,
        "id": names,
        "shard": pa.array((numbers // 10_000).astype(np.int32)),
        "offset": pa.array(numbers % 10_000 * 200_000),
        "size": pa.array(np.full(count, 200_000)),
        "sha256": pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), count, [None, hashes]),
        "text_tokens": pa.array(text_tokens + np.where(is_volume, 9 * num_images, 3 * num_images).astype(np.int32)),
        "image_widths": pa.ListArray.from_arrays(borders, sides[0]),
        "image_heights": pa.ListArray.from_arrays(borders, sides[1]),
        "image_spans": pa.ListArray.from_arrays(borders, spans),
    }
    rest = [field for field in INDEX_SCHEMA if field.name not in columns]
    columns |= {field.name: pa.nulls(count, field.type) for field in rest}
    return pa.record_batch([columns[field.name] for field in INDEX_SCHEMA], schema=INDEX_SCHEMA)


def measure(folder: Path, count: int) -> dict[str, float]:
    """Write the table, plan an epoch: seconds of both, rows over the fewest possible, waste and peak bytes.

    CPU seconds stand beside: on a machine that others use too, they say what an idle one would need.
    """
    model = qwen3_vl_8b()
    settings = TableSettings(
        seq_len_tokens=SEQ_LEN_TOKENS,
        sample_align_tokens=1,
        max_row_patches=0,
        min_pixels=65_536,
        max_pixels=16_777_216,
        patch_size=model.vision.patch_size,
        merge_size=model.vision.merge_size,
        flops=flops_polynomial(model),
    )
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    summary = write_table(folder, folder / "0.npy", settings)
    table_s = time.perf_counter() - start_s
    table = open_table(folder / "0.npy")
    start_s = time.perf_counter()
    plan = RowPlan([table], [MixtureSource(folder)], seq_len_tokens=SEQ_LEN_TOKENS, packing=True, seed=1)
    num_rows = plan.rows_per_epoch
    plan_s = time.perf_counter() - start_s
    assert len(table) == count and plan.tokens_per_epoch == summary.num_tokens
    return {
        "samples": count,
        "table_seconds": round(table_s, 3),
        "plan_seconds": round(plan_s, 3),
        "seconds": round(table_s + plan_s, 3),
        "cpu_seconds": round(time.process_time() - start_cpu_s, 3),
        "peak_bytes": _peak_bytes(),
        "thinned": summary.num_thinned,
        "rows": num_rows,
        "waste": round(plan.waste(), 5),
        "rows_over_fewest": round(num_rows / -(-plan.tokens_per_epoch // SEQ_LEN_TOKENS), 5),
    }


def measure_alone(count: int) -> dict[str, float]:
    """`measure` in a process of its own, with an index that another one wrote."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="medx-plan-") as scratch:
        for step in (write_index, measure):
            with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as alone:
                found = alone.submit(step, Path(scratch), count).result()
    return found


def _peak_bytes() -> int:
    """Most memory that this process has had. (`getrusage` would count the process that started it.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and one JSON line; 0 when the targets are reached, 1 when one is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=NUM_SAMPLES, help="sizes, ascending")
    chosen = parser.parse_args(arguments)

    print("   samples   table s   plan s    CPU s   us a sample   peak memory     waste   rows over fewest")
    found = []
    for count in chosen.samples:
        row = measure_alone(count)
        found.append(row)
        print(
            f"{count:10,}   {row['table_seconds']:7.2f}   {row['plan_seconds']:6.2f}   {row['cpu_seconds']:6.2f}",
            end="",
        )
        print(f"   {row['cpu_seconds'] / count * 1e6:11.2f}   {row['peak_bytes'] / 1e6:8,.0f} MB", end="")
        print(f"   {row['waste']:7.3%}   {row['rows_over_fewest']:16.5f}")
    first, last = found[0], found[-1]
    growth = last["cpu_seconds"] / last["samples"] / (first["cpu_seconds"] / first["samples"])
    reached = last["seconds"] < MOST_SECONDS and last["peak_bytes"] < MOST_BYTES and growth < MOST_GROWTH
    print(f"\n{last['samples']:,} samples: {last['seconds']:.1f} s, {last['peak_bytes'] / 1e9:.2f} GB, ", end="")
    print(f"{growth:.2f} times the CPU seconds a sample of {first['samples']:,}")
    print(f"target: under {MOST_SECONDS:.0f} s, {MOST_BYTES / 1e9:.0f} GB and {MOST_GROWTH:.0f} times: ", end="")
    ratios = last["seconds"] / MOST_SECONDS, last["peak_bytes"] / MOST_BYTES, growth / MOST_GROWTH
    print(f"{ratios[0]:.2f}, {ratios[1]:.2f}, {ratios[2]:.2f} of it, {'reached' if reached else 'MISSED'}")
    targets = {"seconds": MOST_SECONDS, "peak_bytes": MOST_BYTES, "growth": MOST_GROWTH}
    summary = {"benchmark": "plan", "sizes": found, "growth": round(growth, 3), "targets": targets, "reached": reached}
    print(json.dumps(summary))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
