"""What saving checkpoints beside training costs the run, and how fast they are written and read.

    python -m benchmarks.save_cost

Rival of the first part: the same run without saves. Target: with `checkpoint.async_save` and checksums training takes
less than 5 % longer at the demo's own interval, 120 steps. A round is one run of each, the first of them in turn.

The run is the demo (two ranks on all cores, so that what is done beside it must take time from it). Two runs of one
kind differ by more than 5 % here, so the loss is not taken from their totals: the run saves every 20 steps, a save and
its checksums are over within half of them, and the other halves say how the two runs compare without a save. Seconds
lost a save = first halves of the run that saves - its second halves x first over second halves of its rival, a save. A
save is then charged to the steps between two saves at either interval. The plain ratio of totals is told, too.

Limit of the second part: the disk, by writing as many random bytes to one file for good, and by reading them back. A
larger network of two ranks saves as people wait for it, twice, and resumes; sums are written and verified on their own.
Before each reading the page cache is asked to forget the files.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.export_cost import DATA, Seen, train
from megatron_medx.data.demo.build import build_demo
from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder.integrity import folder_name, num_bytes, problems, write_integrity

TARGET = 0.05
"""Largest share by which saving may lengthen training."""

EVERY_STEPS = 20
"""Between the saves that are measured: a save and its checksums take 2 to 4 s, ten steps of the demo 5 s."""

NEVER = "checkpoint.every_steps=1000000"

LARGE = (
    "model.hidden_size=768", "model.num_layers=8", "model.num_heads=12", "model.num_kv_heads=4", "model.head_dim=64",
    "model.mrope_section=12,10,10", "model.ffn_hidden_size=3072", "data.seq_len_tokens=512",
    "training.global_batch_rows=2", "optimizer.warmup_tokens=0",
)  # fmt: skip
"""Overrides of the demo for a checkpoint of about 1 GB."""

BLOCK_BYTES = 8_000_000


def halves_s(seen: Seen, every_steps: int, num_saves: int) -> tuple[float, float]:
    """Seconds from step to step in the first halves behind the saves, and in the second halves."""
    took_s = {step: seen.step_ended_s[step] - seen.step_ended_s[step - 1] for step in sorted(seen.step_ended_s)[1:]}
    halves = [0.0, 0.0]
    for save, offset in itertools.product(range(1, num_saves + 1), range(1, every_steps + 1)):
        halves[offset > every_steps // 2] += took_s[save * every_steps + offset]
    return halves[0], halves[1]


def compare(saving: Seen, without: Seen, every_steps: int, num_saves: int) -> dict[str, float]:
    """One round's figures: seconds, and shares of the rival."""
    (beside_s, free_s), (rival_beside_s, rival_free_s) = (
        halves_s(seen, every_steps, num_saves) for seen in (saving, without)
    )
    step_s = free_s / (num_saves * (every_steps - every_steps // 2))
    lost_s = (beside_s - free_s * rival_beside_s / rival_free_s) / num_saves
    return {
        "lost_s_a_save": lost_s,
        "step_s": step_s,
        "cost": lost_s / (get_recipe("demo").checkpoint.every_steps * step_s),
        "cost_at_measured_interval": lost_s / (every_steps * step_s),
        "plain_ratio_of_totals": saving.training_s / without.training_s - 1,
    }


def measure_loss(data: Path, num_saves: int, num_rounds: int) -> list[dict[str, float]]:
    """A comparison a round; who goes first changes from round to round."""
    words = [f"data.path={data}", f"training.steps={(num_saves + 1) * EVERY_STEPS}", "log.tensorboard=false"]
    save = [f"checkpoint.every_steps={EVERY_STEPS}", "checkpoint.async_save=true", "checkpoint.keep_last=2"]
    found = []
    with tempfile.TemporaryDirectory(prefix="medx-", dir=".") as scratch:
        for number in range(num_rounds):
            ways = {"saving": save, "without": [NEVER]}
            order = ("saving", "without") if number % 2 else ("without", "saving")
            runs = {way: train(Path(scratch) / f"{way}-{number}", [*words, *ways[way]]) for way in order}
            found.append(compare(runs["saving"], runs["without"], EVERY_STEPS, num_saves))
    return found


def timer_s(log: str, name: str) -> float:
    """Seconds of Megatron's timer, of the slowest rank, when a log has it last."""
    return float(re.findall(rf"{name} \.*: \([\d.]+, ([\d.]+)\)", log)[-1]) / 1000


def measure_rates(data: Path) -> dict[str, float]:
    """Bytes a second of one large checkpoint: written and read by a run, summed and verified, and by the disk."""
    with tempfile.TemporaryDirectory(prefix="medx-", dir=".") as scratch:
        run = Path(scratch) / "run"
        command = [sys.executable, "-m", "megatron_medx.cli", "train"]
        words = [f"run.folder={run}", f"data.path={data}", "log.tensorboard=false", *LARGE]
        log = run / "logs" / "rank_1.log"
        saves = ["training.steps=2", "checkpoint.every_steps=1", "checkpoint.checksums=false"]
        subprocess.run([*command, "demo", *words, *saves], check=True, stdout=subprocess.DEVNULL)
        save_s, checkpoint = timer_s(log.read_text(), "save-checkpoint"), run / "checkpoints" / folder_name(2)
        size = num_bytes(checkpoint)
        seconds = {"save": save_s}
        seconds["disk_write"] = timed(lambda: write_bytes(Path(scratch) / "bytes", size))
        forget(Path(scratch))
        seconds["disk_read"] = timed(lambda: read_bytes(Path(scratch) / "bytes"))
        forget(checkpoint)
        seconds["write_sums"] = timed(lambda: write_integrity(checkpoint))
        forget(checkpoint)
        seconds["verify"] = timed(lambda: problems(checkpoint))
        forget(checkpoint)
        resume = ["training.steps=3", NEVER, "checkpoint.checksums=false", "--resume"]
        subprocess.run([*command, str(run / "run.yaml"), *words, *resume], check=True, stdout=subprocess.DEVNULL)
        seconds["load"] = timer_s(log.read_text(), "load-checkpoint")
    rates = {f"{name}_bytes_per_s": size / each_s for name, each_s in seconds.items()}
    rates["load_verified_bytes_per_s"] = size / (seconds["verify"] + seconds["load"])
    return {"checkpoint_bytes": size} | rates


def timed(work: Callable[[], object]) -> float:
    """Seconds that a function takes."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def write_bytes(path: Path, size: int) -> None:
    """Write random bytes to a disk for good."""
    block = os.urandom(BLOCK_BYTES)
    with open(path, "wb") as file:
        for start in range(0, size, BLOCK_BYTES):
            file.write(block[: size - start])
        file.flush()
        os.fsync(file.fileno())


def read_bytes(path: Path) -> None:
    """Read a file to its end."""
    with open(path, "rb", buffering=0) as file:
        while file.read(BLOCK_BYTES):
            pass


def forget(folder: Path) -> None:
    """Ask the page cache to drop the files of a folder."""
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and one JSON line; 0 when the target is reached, 1 when it is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.save_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--saves", type=int, default=5, help="of each run that saves (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    chosen = parser.parse_args(arguments)

    if not (DATA / "manifest.json").is_file():
        build_demo(DATA)
    load = os.getloadavg()[0]
    rates = measure_rates(DATA.absolute())
    rounds = measure_loss(DATA, chosen.saves, chosen.rounds)
    medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    is_reached = medians["cost"] < TARGET
    print(f"{chosen.rounds} rounds of {chosen.saves} saves, {os.cpu_count()} cores, load before {load:.1f}\n")
    for key, value in medians.items():
        values = ", ".join(f"{one[key]:.4g}" for one in rounds)
        print(f"{key:26} median {value:8.4g}   rounds {values}")
    print()
    for key, value in rates.items():
        print(f"{key:26} {value:,.0f}")
    print(f"\ncost {medians['cost']:.2%}   target < {TARGET:.0%}: {'reached' if is_reached else 'MISSED'}")
    summary = {"benchmark": "save_cost", "saves": chosen.saves, "rounds": chosen.rounds, "load_before": round(load, 1)}
    summary |= {key: round(value, 4) for key, value in medians.items()}
    summary |= {key: round(value) for key, value in rates.items()}
    print(json.dumps(summary | {"target": TARGET, "reached": is_reached}))
    return 0 if is_reached else 1


if __name__ == "__main__":
    sys.exit(main())
