"""What exporting checkpoints beside training costs the run.

    python -m benchmarks.export_cost

Rival: the same run without exports. Target: with them training takes less than 1 % longer, from the first step to the
last, saving included; median over rounds. A round is one run of each, the first of them in turn.

The run is the demo (two ranks) with its checkpoint half way; the export starts there. Where ranks leave a core idle the
conversion costs them only memory bandwidth. Here two ranks take both cores, so it must steal time: it runs at the
lowest priority, and takes longer for it. Also told: steps during which a conversion was under way beside the same steps
of the rival, and how long the run's end waited for the export of the last checkpoint, which starts when training is
over: that wait is no part of the target.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_medx.data.demo.build import build_demo
from megatron_medx.training.step_lines import read_metrics

TARGET = 0.01
"""Largest share by which exports may lengthen training."""

LOOK_S = 0.02
"""Between looks at a running job."""

DATA = Path("data/demo")


@dataclass
class Seen:
    """What was seen of one run."""

    step_ended_s: dict[int, float] = field(default_factory=dict)
    """Step -> when its line was first seen; the step itself ended then."""
    under_way: dict[int, list[float]] = field(default_factory=dict)
    """Exported step -> when its log was first seen, and when it was there under its name."""
    ended_s: float = 0.0
    """When the command had ended."""
    step_s: dict[int, float] = field(default_factory=dict)
    """Step -> seconds in it, as metrics.jsonl has it."""

    @property
    def training_s(self) -> float:
        """From the end of the first step to the end of the last."""
        return self.step_ended_s[max(self.step_ended_s)] - self.step_ended_s[min(self.step_ended_s)]

    @property
    def tail_s(self) -> float:
        """From the end of the last step to the end of the command."""
        return self.ended_s - self.step_ended_s[max(self.step_ended_s)]

    def steps_beside_exports(self) -> list[int]:
        """Steps, but for the first, during which a conversion was under way."""
        steps = sorted(self.step_ended_s)
        return [
            step
            for before, step in itertools.pairwise(steps)
            if any(s < self.step_ended_s[step] and e > self.step_ended_s[before] for s, e in self.under_way.values())
        ]


def train(folder: Path, words: Sequence[str]) -> Seen:
    """Run `medx train demo` and look at what it leaves as it goes on."""
    seen, metrics = Seen(), folder / "metrics.jsonl"
    command = [sys.executable, "-m", "megatron_medx.cli", "train", "demo", f"run.folder={folder}", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        look(folder, metrics, seen)
        time.sleep(LOOK_S)
    seen.ended_s = time.monotonic()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}")
    look(folder, metrics, seen)
    seen.step_s = {line["step"]: line["step_time_s"] for line in read_metrics(metrics)}
    return seen


def look(folder: Path, metrics: Path, seen: Seen) -> None:
    """Note what is new: lines of metrics, logs of exports, exports."""
    now_s = time.monotonic()
    num_steps = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    for step in range(len(seen.step_ended_s) + 1, num_steps + 1):
        seen.step_ended_s[step] = now_s
    for log in folder.glob("logs/export_*.log"):
        step = int(log.stem.removeprefix("export_"))
        span = seen.under_way.setdefault(step, [now_s, now_s])
        if not (folder / "exports" / f"iter_{step:07d}").exists():
            span[1] = now_s


def compare(with_exports: Seen, without: Seen) -> dict[str, float]:
    """One round's figures: shares of the rival, and seconds."""
    steps = [step for step in with_exports.steps_beside_exports() if step in without.step_s]
    beside, same = (sum(seen.step_s[step] for step in steps) for seen in (with_exports, without))
    last = max(with_exports.step_ended_s)
    during = [end - start for step, (start, end) in with_exports.under_way.items() if step != last]
    return {
        "cost": with_exports.training_s / without.training_s - 1,
        "cost_while_under_way": beside / same - 1 if steps else 0.0,
        "training_s": with_exports.training_s,
        "training_without_s": without.training_s,
        "steps_beside_exports": len(steps),
        "export_s": max(during, default=0.0),
        "wait_at_end_s": with_exports.tail_s - without.tail_s,
    }


def measure(data: Path, num_steps: int, num_rounds: int) -> list[dict[str, float]]:
    """A comparison a round; who goes first changes from round to round."""
    half = num_steps // 2
    words = [f"data.path={data}", f"training.steps={num_steps}", f"checkpoint.every_steps={half}"]
    found = []
    with tempfile.TemporaryDirectory(prefix="medx-", dir=".") as scratch:
        for number in range(num_rounds):
            ways = {"with": [f"checkpoint.export_every_steps={half}"], "without": []}
            order = ("with", "without") if number % 2 else ("without", "with")
            runs = {way: train(Path(scratch) / f"{way}-{number}", [*words, *ways[way]]) for way in order}
            found.append(compare(runs["with"], runs["without"]))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and one JSON line; 0 when the target is reached, 1 when it is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=240, help="of each run, even (default %(default)s, the demo's)")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    chosen = parser.parse_args(arguments)

    if not (DATA / "manifest.json").is_file():
        build_demo(DATA)
    load = os.getloadavg()[0]
    rounds = measure(DATA, chosen.steps, chosen.rounds)
    medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    is_reached = medians["cost"] < TARGET
    print(f"{chosen.rounds} rounds of {chosen.steps} steps, {os.cpu_count()} cores, load before {load:.1f}\n")
    for key, value in medians.items():
        values = ", ".join(f"{one[key]:.4g}" for one in rounds)
        print(f"{key:22} median {value:8.4g}   rounds {values}")
    print(f"\ncost {medians['cost']:.2%}   target < {TARGET:.0%}: {'reached' if is_reached else 'MISSED'}")
    summary = {
        "benchmark": "export_cost",
        "steps": chosen.steps,
        "rounds": chosen.rounds,
        "load_before": round(load, 1),
    }
    summary |= {key: round(value, 4) for key, value in medians.items()}
    print(json.dumps(summary | {"target": TARGET, "reached": is_reached}))
    return 0 if is_reached else 1


if __name__ == "__main__":
    sys.exit(main())
