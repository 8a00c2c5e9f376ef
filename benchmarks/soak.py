"""A run that is killed at random instants, again and again, and each time resumed: what it loses.

    python -m benchmarks.soak --kills 20        # some five minutes on two cores; 200 for the record: an hour

Rival: the same run left alone. Target: as many resumes as kills; every step and the final weights equal to the last
bit; no step done again but those since the newest save, and none at all after a signal, upon which a run saves.

The run is the demo on two ranks, saved every 4 steps, and longer where there are more than 34 kills. A seed draws who
is killed (SIGKILL of one rank, of all, of the launcher with them; or SIGUSR1 or SIGTERM to all ranks, as Slurm sends
them) and when (soak_kills.py). After each, `medx train --auto-resume` is started like the first time. Most of a
resume's seconds are imports. In the output folder: both runs, what they said, and soak.png, the step over time.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.soak_kills import (
    NUM_RANKS,
    SAVE_EVERY,
    SIGNALS,
    Kill,
    Launch,
    Soak,
    draw_kills,
    last_step,
    num_steps,
    read_steps,
)
from megatron_medx.config.checkpoint_folders import CHECKPOINTS
from megatron_medx.data.demo.build import build_demo

EXACT = ("step", "loss", "grad_norm", "lr", "tokens", "samples_crc")
"""Keys of metrics.jsonl that must be equal in every step."""

DATA, OUT = Path("data/demo"), Path("runs/soak")


def train_command(folder: Path, steps: int) -> list[str]:
    """The run, started or resumed."""
    words = [f"run.folder={folder}", f"data.path={DATA}", f"training.steps={steps}", "log.tensorboard=false"]
    words += [f"checkpoint.every_steps={SAVE_EVERY}", "checkpoint.keep_last=3", "--nproc", str(NUM_RANKS)]
    return [sys.executable, "-m", "megatron_medx.cli", "train", "demo", *words]


def leave_alone(folder: Path, steps: int) -> tuple[float, float]:
    """Train undisturbed; returns seconds to the first step and of the whole."""
    began_s, first_s = time.monotonic(), None
    with open(folder.parent / "undisturbed.txt", "w") as said:
        process = subprocess.Popen(train_command(folder, steps), stdout=said, stderr=said)
    while process.poll() is None:
        if first_s is None and last_step(folder):
            first_s = time.monotonic() - began_s
        time.sleep(0.05)
    if process.returncode or first_s is None:
        raise SystemExit(f"the undisturbed run ended with code {process.returncode}; see {said.name}")
    return first_s, time.monotonic() - began_s


def judge(folder: Path, undisturbed: Path, launches: Sequence[Launch], kills: Sequence[Kill]) -> dict[str, int]:
    """What the soak found: resumes, and what differs or was lost, of which there should be nothing."""
    ours, theirs = ({line["step"]: line for line in read_steps(run)} for run in (folder, undisturbed))
    same = [step for step in theirs if step in ours and all(ours[step][key] == theirs[step][key] for key in EXACT)]
    pairs = list(itertools.pairwise(launches))
    return {
        "resumes": len(pairs),
        "steps_that_differ": len(theirs.keys() | ours.keys()) - len(same),
        "weights_that_differ": differing_weights(folder, undisturbed, max(theirs)),
        "steps_lost_beyond_the_last_save": sum(lost_beyond_the_save(one, two) for one, two in pairs),
        "steps_lost_to_signals": sum(
            one.last_step - two.newest
            for (one, two), kill in zip(pairs, kills, strict=True)
            if kill.victim in SIGNALS and kill.instant != "start"
        ),
    }


def lost_beyond_the_save(one: Launch, two: Launch) -> int:
    """Steps that the second launch repeats although they were saved.

    That a step was saved is known by the checkpoint that is named as the newest, and by a step after a multiple of
    SAVE_EVERY, which began when that one's save was over.
    """
    went_on_from = two.newest if two.resumed_from is None else two.resumed_from
    return max(0, max(two.newest, SAVE_EVERY * ((one.last_step - 1) // SAVE_EVERY)) - went_on_from)


def differing_weights(folder: Path, undisturbed: Path, step: int) -> int:
    """Tensors of the last checkpoint, weights and optimizer state, that are not equal in every bit, or missing."""
    import torch

    from megatron_medx.checkpoint.megatron_files.torch_dist import TorchDistFolder

    ours, theirs = (TorchDistFolder(run / CHECKPOINTS / f"iter_{step:07d}") for run in (folder, undisturbed))
    missing = ours.specs.keys() ^ theirs.specs.keys()
    shared = ours.specs.keys() & theirs.specs.keys()
    return len(missing) + sum(not torch.equal(ours.read(key), theirs.read(key)) for key in shared)


def draw(launches: Sequence[Launch], kills: Sequence[Kill], path: Path) -> None:
    """The step over wall time, with a mark where each kill came."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 5))
    for launch in launches:
        axes.plot(*zip(*launch.curve, strict=True), color="0.4", linewidth=1, drawstyle="steps-post")
    for number, victim in enumerate(dict.fromkeys(kill.victim for kill in kills)):
        ends = [launch for launch, kill in zip(launches, kills, strict=False) if kill.victim == victim]
        points = [(launch.struck_s, launch.last_step) for launch in ends]
        axes.scatter(*zip(*points, strict=True), marker="xv^so"[number], label=f"{victim} ({len(ends)})", zorder=3)
    axes.set(xlabel="wall time, s", ylabel="finished steps", title=f"{len(kills)} kills, {len(launches) - 1} resumes")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what happens, the figures and one JSON line; 0 when every target is reached, 1 when one is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of who and when (default %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder, new or empty (default %(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.out.exists() and any(chosen.out.iterdir()):
        parser.error(f"{chosen.out} is not empty: remove it, or choose another with --out")
    if not (DATA / "manifest.json").is_file():
        build_demo(DATA)
    chosen.out.mkdir(parents=True, exist_ok=True)
    load, steps, kills = os.getloadavg()[0], num_steps(chosen.kills), draw_kills(chosen.kills, chosen.seed)
    killed, undisturbed = chosen.out / "killed", chosen.out / "undisturbed"

    print(f"{steps} steps undisturbed, {os.cpu_count()} cores, load before {load:.1f}", flush=True)
    start_s, whole_s = leave_alone(undisturbed, steps)
    expected_s = whole_s + chosen.kills * start_s
    print(
        f"took {whole_s:.0f} s, {start_s:.0f} s of it to the first step; {chosen.kills} kills: about {expected_s:.0f} s"
    )
    soak = Soak(killed, [*train_command(killed, steps), "--auto-resume"], kills, start_s)
    launches = soak.run(lambda line: print(line, flush=True))
    draw(launches, kills, chosen.out / "soak.png")

    figures = judge(killed, undisturbed, launches, kills)
    targets = dict.fromkeys(figures, 0) | {"resumes": chosen.kills}
    is_reached = figures == targets and launches[-1].code == 0
    print(f"\nlast launch ended with code {launches[-1].code}")
    for key, value in figures.items():
        print(f"{key:32} {value:5d}   target {targets[key]:5d}   {'reached' if value == targets[key] else 'MISSED'}")
    again = sum(one.last_step - two.newest for one, two in itertools.pairwise(launches) if one.first_step_s)
    wait_s = statistics.median(launch.first_step_s for launch in launches if launch.first_step_s)
    print(f"steps done again {again}; from a start to its first step {wait_s:.1f} s (median); {chosen.out}/soak.png")
    summary = {"benchmark": "soak", "kills": chosen.kills, "seed": chosen.seed, "steps": steps, **figures}
    summary |= {"steps_done_again": again, "start_s": round(wait_s, 1), "took_s": round(launches[-1].ended_s)}
    print(json.dumps(summary | {"load_before": round(load, 1), "reached": is_reached}))
    return 0 if is_reached else 1


if __name__ == "__main__":
    sys.exit(main())
