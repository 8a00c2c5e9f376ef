"""How fast rows can be made here, beside how fast a run would use them up.

Comes in: a RunConfig. Goes out: numbers, and lines that say them. Found: the loader of one rank, used as training uses
it, but by somebody who only takes rows. Needed: model FLOPs of these very rows over what the devices of a replica are
taken to do. The rank measured decodes all images of its rows; in a run the ranks that share a row share them.
"""

import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing

import torch

from megatron_medx.config.run import RunConfig
from megatron_medx.data.decoder_choice import make_decoder
from megatron_medx.data.loader import load_rows
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.reader import DamagedSample
from megatron_medx.data.rows import RowDataset, build_row_dataset, row_lengths
from megatron_medx.errors import ConfigError

H100_TFLOPS = 989.0
"""Dense bf16 peak of an H100 SXM. Source: NVIDIA, H100 Tensor Core GPU data sheet (1,979 with sparsity, halved)."""

USUAL_MFU = 0.4
"""Share of the peak that model FLOPs reach in a well-tuned run."""

PART_ROWS = 20
"""Rows of which reading, tokenizing and decoding are timed one by one."""


def bench_data(
    config: RunConfig,
    *,
    workers: Sequence[int] = (0,),
    seconds_s: float = 10.0,
    peak_tflops: float = H100_TFLOPS,
    mfu: float = USUAL_MFU,
) -> dict:
    """Measure the loader of one rank and set it beside what a run needs.

    Args:
        config: of the run; data, model, grid and frozen parts are read.
        workers: numbers of worker processes; 0 is the thread alone.
        seconds_s: measured for each of them, warm-up excluded.
        peak_tflops: of one device.
        mfu: share of the peak that the run is taken to reach.

    Returns:
        `loader`: for each number of workers what `_measure` returns; `parts`: milliseconds a row; `needed`;
        `best_workers`; `ratio`: rows found over rows needed, of the best; `workers_needed`: by the best rate a process.

    Raises:
        ConfigError: an argument is out of range.
    """
    if min(workers, default=-1) < 0 or not all(value > 0 for value in (seconds_s, peak_tflops)) or not 0 < mfu <= 1:
        raise ConfigError(
            f"workers {' '.join(map(str, workers))}, seconds {seconds_s:g}, peak {peak_tflops:g} TFLOP/s, MFU {mfu:g}",
            "at least one number of workers, none negative; seconds and peak above 0; MFU above 0, at most 1",
            "correct the option",
        )
    data, grid = config.data, config.parallel
    dataset = build_row_dataset(config, **row_lengths(config))
    rows = itertools.count()  # goes on from one number of workers to the next: none finds the rows of another in memory
    loader = [_measure(dataset, rows, num_workers, data.prefetch_rows, seconds_s) for num_workers in workers]
    needed = _needed(loader, grid.world_size // grid.data, peak_tflops, mfu)
    best = max(loader, key=lambda found: found["rows_per_s"])
    rate_of_process = max(found["rows_per_s"] / max(1, found["num_workers"]) for found in loader)
    return {
        "data": data.path,
        "decoder": data.decoder,
        "cores": len(os.sched_getaffinity(0)),
        "loader": loader,
        "parts": _parts(dataset, config),
        "needed": needed,
        "best_workers": best["num_workers"],
        "ratio": best["rows_per_s"] / needed["rows_per_s"],
        "workers_needed": math.ceil(needed["rows_per_s"] / rate_of_process),
    }


def bench_lines(result: dict) -> list[str]:
    """What `bench_data` found, for people."""
    parts, needed = result["parts"], result["needed"]
    lines = [
        f"{result['data']}: {needed['tokens_per_row']:,.0f} tokens and {needed['images_per_row']:.1f} images a row; "
        f"decoder {result['decoder']}, {result['cores']} cores",
        "files that fit into memory are read from there after the first time: the disk is then not measured",
        "",
        f"{'workers':>8}{'rows/s':>10}{'tokens/s':>12}{'images/s':>10}{'MB/s':>9}{'found / needed':>16}"
        f"{'measured':>12}{'first row':>11}",
    ]
    for found in result["loader"]:
        ratio = found["rows_per_s"] / needed["rows_per_s"]
        lines.append(
            f"{found['num_workers'] or 'thread':>8}{found['rows_per_s']:>10.2f}{found['tokens_per_s']:>12,.0f}"
            f"{found['images_per_s']:>10.1f}{found['mb_per_s']:>9.1f}{ratio:>16.3g}{found['measured_s']:>10.1f} s"
            f"{found['start_s']:>9.1f} s"
        )
    times = [f"{name} {milliseconds:.1f} ms" for name, milliseconds in parts["ms_per_row"].items()]
    devices = f"{needed['ranks_per_row']} device{'s' if needed['ranks_per_row'] > 1 else ''} x "
    return [
        *lines,
        "",
        f"a row     {', '.join(times)} ({parts['num_rows']} rows, one process)",
        f"needed    {needed['tokens_per_s']:,.0f} tokens/s = {needed['rows_per_s']:.2f} rows/s a replica: "
        f"{needed['flops_per_row'] / 1e12:.3g} TFLOP a row / ({devices}{needed['peak_tflops']:g} TFLOP/s x "
        f"{needed['mfu']:g}) = {needed['seconds_per_row_s']:.3g} s a row",
        f"so        {result['ratio']:.3g} x of what is needed with {result['best_workers'] or 'no'} workers; about "
        f"{result['workers_needed']:,} processes for each rank would do, each with a core of its own",
    ]


def _measure(dataset: RowDataset, rows: Iterator[int], num_workers: int, prefetch_rows: int, seconds_s: float) -> dict:
    """Take rows as fast as they come; those that were made ahead of the clock are not counted."""
    warm_rows = (1 + num_workers) * prefetch_rows + num_workers
    taken = []

    def noted() -> Iterator[int]:
        for row in rows:
            taken.append(row)
            yield row

    totals = {"tokens": 0, "images": 0, "bytes": 0}
    start_s = time.perf_counter()
    loader = load_rows(
        dataset, noted(), num_workers=num_workers, prefetch_rows=prefetch_rows, pin=torch.cuda.is_available()
    )
    with closing(loader):
        next(loader)
        started_s = time.perf_counter() - start_s
        for _ in range(warm_rows - 1):
            next(loader)
        num_rows, begin_s = 0, time.perf_counter()
        while (measured_s := time.perf_counter() - begin_s) < seconds_s or num_rows == 0:
            batch = next(loader)
            num_rows += 1
            for name, amount in _amounts(batch).items():
                totals[name] += amount
    return {
        "num_workers": num_workers,
        "start_s": started_s,
        "warm_rows": warm_rows,
        "num_rows": num_rows,
        "measured_s": measured_s,
        "rows_per_s": num_rows / measured_s,
        "tokens_per_s": totals["tokens"] / measured_s,
        "images_per_s": totals["images"] / measured_s,
        "mb_per_s": totals["bytes"] / measured_s / 1e6,
        "flops": sum(map(dataset.cost, taken[warm_rows : warm_rows + num_rows])),
    }


def _amounts(batch: Microbatch) -> dict[str, int]:
    """Tokens without padding, images, and bytes that would be copied to the device."""
    tensors = [value for name in batch.__slots__ if isinstance(value := getattr(batch, name), torch.Tensor)]
    return {
        "tokens": sum(batch.sample_tokens),
        "images": len(batch.grids_I3),
        "bytes": sum(tensor.nbytes for tensor in tensors),
    }


def _needed(loader: list[dict], ranks_per_row: int, peak_tflops: float, mfu: float) -> dict:
    """What a replica uses up, from the rows that were measured."""
    num_rows = sum(found["num_rows"] for found in loader)

    def per_row(name: str) -> float:
        return sum(found[f"{name}_per_s"] * found["measured_s"] for found in loader) / num_rows

    flops_per_row = sum(found["flops"] for found in loader) / num_rows
    seconds_per_row_s = flops_per_row / (peak_tflops * 1e12 * mfu) / ranks_per_row
    return {
        "peak_tflops": peak_tflops,
        "mfu": mfu,
        "ranks_per_row": ranks_per_row,
        "flops_per_row": flops_per_row,
        "tokens_per_row": per_row("tokens"),
        "images_per_row": per_row("images"),
        "seconds_per_row_s": seconds_per_row_s,
        "rows_per_s": 1 / seconds_per_row_s,
        "tokens_per_s": per_row("tokens") / seconds_per_row_s,
    }


def _parts(dataset: RowDataset, config: RunConfig) -> dict:
    """Milliseconds a row that reading, tokenizing and decoding take, in this process; the first row warms up."""
    decoder = make_decoder(config.data.decoder, dataset.encoder.patcher)
    spent_s = dict.fromkeys(("read", "tokenize", "decode"), 0.0)
    for j in range(PART_ROWS + 1):
        marks_s = [time.perf_counter()]
        stored = list(_stored(dataset, j))
        marks_s.append(time.perf_counter())
        encoded = [dataset.encoder.encode(one.sample, one.files) for one in stored]
        marks_s.append(time.perf_counter())
        decoder.patches([image for one in encoded for image in one.images])
        marks_s.append(time.perf_counter())
        if j > 0:
            for name, (before_s, after_s) in zip(spent_s, itertools.pairwise(marks_s), strict=True):
                spent_s[name] += after_s - before_s
    return {"num_rows": PART_ROWS, "ms_per_row": {name: 1e3 * spent / PART_ROWS for name, spent in spent_s.items()}}


def _stored(dataset: RowDataset, j: int) -> Iterator:
    """The samples of a row as they are stored; the dataset has decided whether damaged ones are tolerated."""
    for source, number in dataset.plan.row(j):
        try:
            yield dataset.readers[source].read(number)
        except DamagedSample:
            continue
