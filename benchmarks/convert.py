"""What converting costs: wall time against `cp` and `sync` of the same bytes, and peak memory, both directions.

    python -m benchmarks.convert

Rival: `cp -r` of the very folder that ours wrote, then `sync` of its files. Ours is the command line, start-up and
imports included, and forces what it writes to disk too. Both run in each round, one after the other, each with its
source dropped from the page cache first, so that the disk's moods fall on both alike; the ratio is that of the median
times. Targets: under 1.7 times the rival's time, and under 1.5 GB of resident memory.

Resident memory is the kernel's own count of the process (VmHWM), pages of mapped files included, though these
could be dropped at any time; the part that could not, anonymous memory, is sampled and stands beside.

The source is a Hugging Face directory of Qwen3-VL-2B's shapes in bf16, one file, tensors in the order of their names as
the safetensors library writes them, filled with random bits that are finite numbers. After the first round what came
back is compared with it byte for byte. `--size tiny` is for trying the program out: start-up is nearly all of it.

The plan of the largest published size is listed in a process of its own (`conversion_plan.py`): every key of both
sides, every shape, all bytes. Targets: 10 s and 500 MB.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.measured_child import run_child
from megatron_medx.checkpoint.hugging_face.hf_directory import HfDirectory, write_companions
from megatron_medx.checkpoint.hugging_face.hf_files import SINGLE_FILE
from megatron_medx.checkpoint.hugging_face.safetensors_stream import write_safetensors
from megatron_medx.checkpoint.layout.rules import bindings, hf_shapes
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.writing.output_folder import check_free_space
from megatron_medx.config.model import ModelConfig
from megatron_medx.recipes.demo import demo
from megatron_medx.recipes.sizes import qwen3_vl_2b

SIZES = {"2b": qwen3_vl_2b, "tiny": lambda: demo().model}

DIRECTIONS = ("to-megatron", "to-hf")

MOST_RATIO, MOST_BYTES = 1.7, 1.5e9
"""Targets: our median time over that of cp and sync, and peak resident memory."""

MOST_PLAN_SECONDS, MOST_PLAN_BYTES = 10.0, 500e6

FOLDERS_AT_ONCE = 4
"""Source, checkpoint, what came back, and the rival's copy lie on the disk together."""


def make_source(folder: Path, model: ModelConfig) -> None:
    """Write a Hugging Face directory of seeded random bf16 values, one tensor in memory at a time."""
    shapes = sorted(hf_shapes(bindings(model)).items())
    specs = {key: TensorSpec(shape, torch.bfloat16) for key, shape in shapes}
    folder.mkdir()
    write_safetensors(folder / SINGLE_FILE, specs, _random_tensors(specs))
    write_companions(folder, model, torch.bfloat16, folder)


def _random_tensors(specs: dict[str, TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
    random = np.random.Generator(np.random.SFC64(17))
    for key, spec in specs.items():
        bits = np.frombuffer(random.bytes(spec.num_bytes), np.uint16).copy()
        bits &= 0xBFFF  # the exponent's highest bit cleared: below 2 in size, never infinite or NaN
        yield key, torch.from_numpy(bits).view(torch.bfloat16).reshape(spec.shape)


def different_tensors(first: Path, second: Path) -> list[str]:
    """Keys whose bytes differ between two Hugging Face directories, or that one of them lacks."""
    left, right = HfDirectory(first), HfDirectory(second)
    shared = left.specs.keys() & right.specs.keys()
    differ = [key for key in shared if not torch.equal(*(one.read(key).view(torch.int16) for one in (left, right)))]
    return sorted(differ + list(left.specs.keys() ^ right.specs.keys()))


def copy(source: Path, out: Path) -> float:
    """Seconds of `cp -r` and `sync` of the copied files alone, so that nobody else's unwritten data are waited for."""
    start_s = time.perf_counter()
    subprocess.run(["cp", "-r", source, out], check=True)
    subprocess.run(["sync", *_files(out)], check=True)
    return time.perf_counter() - start_s


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache (they must be on disk: dirty pages stay)."""
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def measure_round(scratch: Path) -> dict[str, dict[str, float]]:
    """Convert there and back, each followed by its rival; the folder `back` is left for comparison."""
    steps = {"to-megatron": ("hf", "megatron"), "to-hf": ("megatron", "back")}
    found = {}
    for direction, (source, out) in steps.items():
        shutil.rmtree(scratch / out, ignore_errors=True)
        forget(scratch / source)
        found[direction], _ = run_child("megatron_medx.cli", "convert", direction, scratch / source, scratch / out)
        forget(scratch / out)
        found[direction]["copy_seconds"] = copy(scratch / out, scratch / "copy")
        found[direction]["bytes"] = sum(path.stat().st_size for path in _files(scratch / out))
        shutil.rmtree(scratch / "copy")
    return found


def summarize(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """One direction's medians of times, their ratio, and the worst of the memory peaks."""
    result = {
        name: statistics.median(one[name] for one in rounds) for name in ("seconds", "cpu_seconds", "copy_seconds")
    }
    result["ratio"] = result["seconds"] / result["copy_seconds"]
    result |= {name: max(one[name] for one in rounds) for name in ("peak_bytes", "anonymous_bytes", "bytes")}
    return result


def measure_plan() -> dict[str, float]:
    """List the plan of the largest size in a child; seconds include its start-up."""
    child, printed = run_child("benchmarks.conversion_plan", stdout=subprocess.PIPE)
    return child | json.loads(printed)


def _alone(function, *arguments):
    """Call a function in a fresh process, whose memory then counts for nobody else."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as alone:
        return alone.submit(function, *arguments).result()


def measure(folder: Path, model: ModelConfig, num_rounds: int) -> dict[str, dict[str, float]]:
    """Both directions over all rounds, in a scratch folder that is gone afterwards.

    Raises:
        CheckpointError: too little disk.
        RuntimeError: what came back is not what went in.
    """
    num_bytes = sum(TensorSpec(shape, torch.bfloat16).num_bytes for shape in hf_shapes(bindings(model)).values())
    check_free_space(folder, FOLDERS_AT_ONCE * num_bytes)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=folder) as name:
        scratch = Path(name)
        _alone(make_source, scratch / "hf", model)
        rounds = []
        for number in range(num_rounds):
            rounds.append(measure_round(scratch))
            print_round(number, rounds[-1])
            if number == 0:
                differ = _alone(different_tensors, scratch / "hf", scratch / "back")
                if differ:
                    raise RuntimeError(f"{len(differ)} tensors came back changed: {differ[:8]}")
    return {direction: summarize([one[direction] for one in rounds]) for direction in DIRECTIONS}


def print_round(number: int, found: dict[str, dict[str, float]]) -> None:
    """One line a direction, flushed: a round takes a minute."""
    for direction, one in found.items():
        print(f"{number + 1:5}   ", end="")
        print_line(direction, one, one["seconds"] / one["copy_seconds"])


def print_line(direction: str, one: dict[str, float], ratio: float) -> None:
    """A line of the table."""
    times = f"{one['seconds']:8.2f}   {one['cpu_seconds']:7.2f}   {one['copy_seconds']:9.2f}   {ratio:5.2f}"
    print(
        f"{direction:11}   {times}   {one['peak_bytes'] / 1e6:9,.0f}   {one['anonymous_bytes'] / 1e6:9,.0f}", flush=True
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and one JSON line; 0 when the targets are reached, 1 when one is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="2b", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure (default: here)")
    chosen = parser.parse_args(arguments)

    print("round   direction       ours s     CPU s   cp+sync s   ratio     peak MB     anon MB", flush=True)
    found = measure(chosen.folder.absolute(), SIZES[chosen.size](), chosen.rounds)
    for direction, one in found.items():
        print("  all   ", end="")
        print_line(direction, one, one["ratio"])
    print(f"{found['to-hf']['bytes'] / 1e9:.2f} GB; all: median times and worst peaks of {chosen.rounds} rounds")
    plan = measure_plan()
    print(f"\nplan of 235B: {plan['hf_keys']} and {plan['megatron_keys']} keys, {plan['bytes'] / 1e9:.1f} GB, ", end="")
    print(f"{plan['seconds']:.1f} s, {plan['peak_bytes'] / 1e6:.0f} MB")
    missed = missed_targets(found, plan)
    print(f"targets: ratio under {MOST_RATIO}, peak under {MOST_BYTES / 1e6:,.0f} MB, plan under ", end="")
    print(f"{MOST_PLAN_SECONDS:.0f} s and {MOST_PLAN_BYTES / 1e6:.0f} MB: ", end="")
    print(f"MISSED: {', '.join(missed)}" if missed else "reached")
    targets = {"ratio": MOST_RATIO, "peak_bytes": MOST_BYTES}
    targets |= {"plan_seconds": MOST_PLAN_SECONDS, "plan_peak_bytes": MOST_PLAN_BYTES}
    summary = {"benchmark": "convert", "size": chosen.size, "rounds": chosen.rounds}
    for name, values in (found | {"plan": plan}).items():
        summary[name] = {key: round(value, 6) for key, value in values.items()}
    print(json.dumps(summary | {"targets": targets, "missed": missed, "reached": not missed}))
    return 1 if missed else 0


def missed_targets(found: dict[str, dict[str, float]], plan: dict[str, float]) -> list[str]:
    """Names of the targets that were not reached, such as `to-hf ratio`."""
    limits = {"ratio": MOST_RATIO, "peak_bytes": MOST_BYTES}
    missed = [f"{way} {name}" for way, one in found.items() for name, most in limits.items() if one[name] >= most]
    limits = {"seconds": MOST_PLAN_SECONDS, "peak_bytes": MOST_PLAN_BYTES}
    return missed + [f"plan {name}" for name, most in limits.items() if plan[name] >= most]


if __name__ == "__main__":
    sys.exit(main())
