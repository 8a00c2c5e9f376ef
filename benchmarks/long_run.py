"""A run folder as 100,000 steps on 64 GPUs leave it, for what reads such folders: made up, and the same every time.

    python -m benchmarks.long_run OUT [--steps N] [--ranks N] [--seed N]

Curves have the shapes of real ones: a loss that falls as a power of the step, with noise and a few spikes; a cosine
rate; gradient norms by part; step times with a long tail; one rank that is always a little late. Launches, saves,
signals, a hang and a rollback stand in events.jsonl, three validation sets with modalities and sources, answers along
the run, and a mixture that drifts from its plan. A seed makes another run of the same kind, to lay beside it.
"""

import argparse
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson

from megatron_medx.config.checkpoint_folders import CHECKPOINTS, RUN_FILE, TRACKER_FILE
from megatron_medx.config.files import write_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.config.validation import VALIDATION_FILE
from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder.names import (
    BAD_STEPS_FILE,
    DATA,
    EVENTS_FILE,
    GENERATIONS_FILE,
    LOGS,
    METRICS_FILE,
    RANKS_FILE,
)
from megatron_medx.run_folder.quantities import MAIN_SET

NUM_STEPS, NUM_RANKS = 100_000, 64

STARTED = datetime.datetime(2026, 9, 1, 6, 0, tzinfo=datetime.UTC)
STEP_S, SAVE_S = 11.2, 18.0
SAVE_EVERY, VALIDATE_EVERY, GENERATE_EVERY, RANKS_EVERY = 500, 1_000, 10_000, 10

SHARES = {"reports": 0.55, "questions": 0.25, "replay": 0.2}
"""Of the mixture: data folder -> planned share of tokens."""

SETS = {MAIN_SET: 0.05, "chest": 0.22, "pathology": 0.31}
"""Validation sets, and by how much each is harder than what is trained on, nats."""

MODALITIES = {"CR": -0.1, "CT": 0.02, "MR": 0.06, "SM": 0.15}

SPIKES = {12_345: 3.0, 41_002: 5.5, 77_777: 2.0}
"""Step -> by how much its loss is too high."""

LATE_RANK, LATE_BY = 37, 1.06


def make_run(folder: Path, num_steps: int = NUM_STEPS, num_ranks: int = NUM_RANKS, seed: int = 0) -> None:
    """Write the folder of a run that has done so many steps of a fifth more.

    Args:
        folder: what is there is written over.
        num_steps: done.
        num_ranks: of ranks.jsonl and of the grid; a number that the recipe's grid divides.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    config = get_recipe("pretrain_8b")
    config.run.folder, config.data.path = str(folder), "data/mixture.yaml"
    config.data.validation_path = "data/reports/val"
    config.data.validation_sets = {name: f"data/{name}" for name in SETS if name != MAIN_SET}
    config.training.steps, config.checkpoint.every_steps = num_steps * 6 // 5, SAVE_EVERY
    config.training.validate_every_steps, config.parallel.world_size = VALIDATE_EVERY, num_ranks
    for name in (LOGS, DATA, CHECKPOINTS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_run_yaml(config, folder / RUN_FILE, {"command": ["medx", "train", "pretrain_8b"]})
    _write_plan(folder / DATA / "plan.json")
    _write_lines(folder / METRICS_FILE, metrics(config, num_steps, rng))
    _write_lines(folder / RANKS_FILE, ranks(num_steps, num_ranks, rng))
    _write_lines(folder / VALIDATION_FILE, validations(num_steps, rng))
    _write_lines(folder / GENERATIONS_FILE, generations(num_steps))
    _write_lines(folder / BAD_STEPS_FILE, bad_steps(num_steps))
    _write_lines(folder / EVENTS_FILE, events(num_steps, num_ranks))
    last_saved = num_steps // SAVE_EVERY * SAVE_EVERY
    (folder / CHECKPOINTS / TRACKER_FILE).write_text(f"{last_saved}\n")


def _write_lines(path: Path, lines: Iterator[dict]) -> None:
    with open(path, "wb") as file:
        file.writelines(orjson.dumps(line) + b"\n" for line in lines)


def _write_plan(path: Path) -> None:
    """As data/plan/prepare.py writes it."""
    pieces = {"sources": len(SHARES)}
    for number, share in enumerate(SHARES.values()):
        pieces |= {f"source {number}: weight": [[0, share]], f"source {number}: max_epochs": None}
    counts = {f"data/{name}": {"num_samples": 10**7, "num_tokens": 10**10, "num_rejected": 3} for name in SHARES}
    content = {"fingerprint": "0" * 64, "pieces": pieces, "counts": counts}
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def loss_at(steps: np.ndarray | float) -> np.ndarray | float:
    """Nats a token, without noise."""
    return 1.05 + 9.5 * (steps + 20.0) ** -0.31


def metrics(config: RunConfig, num_steps: int, rng: np.random.Generator) -> Iterator[dict]:
    """Lines of metrics.jsonl."""
    steps = np.arange(1, num_steps + 1)
    loss = loss_at(steps) + rng.normal(0, 0.03, num_steps)
    for step, height in SPIKES.items():
        loss[steps == step] += height
    by_part = {part: np.exp(rng.normal(-2 - number, 0.25, num_steps)) for number, part in enumerate("vml")}
    norm = np.sqrt(sum(values**2 for values in by_part.values()))
    progress = steps / config.training.steps
    rate = (
        config.optimizer.min_lr + (config.optimizer.lr - config.optimizer.min_lr) * (1 + np.cos(np.pi * progress)) / 2
    )
    rate *= np.minimum(1, steps / 500)
    time_s = STEP_S * np.exp(rng.normal(0, 0.01, num_steps)) + rng.exponential(0.08, num_steps)
    waited_s = np.where(rng.random(num_steps) < 0.002, rng.exponential(4.0, num_steps), 0.01)
    tokens = rng.integers(4_050_000, 4_194_304, num_steps)
    shares = rng.dirichlet([share * 900 for share in SHARES.values()], num_steps)
    for row, step in enumerate(steps.tolist()):
        total = int(tokens[row])
        tflops = 2.05e-3 * total / (time_s[row] + waited_s[row])
        yield {
            "step": step,
            "loss": None if step in SPIKES and step % 2 else round(float(loss[row]), 6),
            "grad_norm": float(norm[row]),
            "grad_norm_vision": float(by_part["v"][row]),
            "grad_norm_merger": float(by_part["m"][row]),
            "grad_norm_language": float(by_part["l"][row]),
            "lr": float(rate[row]),
            "lr_vision": float(rate[row] / 5),
            "lr_merger": float(rate[row]),
            "lr_language": float(rate[row]),
            "tokens": total,
            "images": total // 900,
            "source_tokens": {name: int(total * part) for name, part in zip(SHARES, shares[row], strict=True)},
            "samples_crc": (step * 2654435761) % 2**40,
            "step_time_s": round(float(time_s[row] + waited_s[row]), 6),
            "data_wait_s": round(float(waited_s[row]), 6),
            "model_tflops_per_s": float(tflops),
            "mfu": float(tflops / 989.4),
            "memory_gb": 61.25 + (step > num_steps // 3) * 2.5,
        }


def ranks(num_steps: int, num_ranks: int, rng: np.random.Generator) -> Iterator[dict]:
    """Lines of ranks.jsonl: one rank is always a little late."""
    for step in range(RANKS_EVERY, num_steps + 1, RANKS_EVERY):
        busy_s = STEP_S * 0.9 * np.exp(rng.normal(0, 0.01, num_ranks))
        busy_s[LATE_RANK % num_ranks] *= LATE_BY
        yield {
            "step": step,
            "step_time_s": np.round(busy_s.max() + 0.9 + rng.normal(0, 1e-3, num_ranks), 6).tolist(),
            "busy_s": np.round(busy_s, 6).tolist(),
            "data_wait_s": np.round(rng.exponential(0.01, num_ranks), 6).tolist(),
            "memory_gb": np.round(63.75 - np.arange(num_ranks) % 8 * 0.125, 3).tolist(),
        }


def validations(num_steps: int, rng: np.random.Generator) -> Iterator[dict]:
    """Lines of validation.jsonl, from step 0 on; two of the sets ask multiple-choice questions."""
    for step in range(0, num_steps + 1, VALIDATE_EVERY):
        for number, (name, harder) in enumerate(SETS.items()):
            loss = float(loss_at(step) + harder + rng.normal(0, 0.004))
            by_source = {
                source: {"loss": loss + 0.04 * place, "tokens": 200_000} for place, source in enumerate(SHARES)
            }
            yield {
                "step": step,
                "set": name,
                "loss": loss,
                "perplexity": float(np.exp(loss)),
                "bits_per_byte": loss / 3.1,
                "accuracy": None if number == 0 else 0.75 - 0.18 * (loss - 1.3),
                "num_questions": 500 * number,
                "rows": 512,
                "tokens": 4_100_000,
                "trained_tokens": 700_000,
                "samples_crc": 123_456_789 + number,
                "by_modality": {key: {"loss": loss + more, "tokens": 170_000} for key, more in MODALITIES.items()},
                "by_source": by_source,
                "duration_s": 41.5 + number,
            }


def generations(num_steps: int) -> Iterator[dict]:
    """Lines of generations.jsonl: four samples of each set, now and then."""
    for step in range(0, num_steps + 1, GENERATE_EVERY):
        for name in SETS:
            for number in range(4):
                yield {
                    "step": step,
                    "set": name,
                    "sample_id": f"{name}-{number:06d}",
                    "question": f"Study {number} of {name}: what is seen?",
                    "answer": f"After {step:,} steps: {'no ' * (step < num_steps // 2)}effusion on the left.",
                    "expected": "A small effusion on the left.",
                }


def bad_steps(num_steps: int) -> Iterator[dict]:
    """Lines of bad_steps.jsonl."""
    for step, height in SPIKES.items():
        if step <= num_steps:
            yield {"step": step, "what": "spike", "loss": loss_at(step) + height, "applied": False, "sample_ids": ["a"]}


def events(num_steps: int, num_ranks: int) -> Iterator[dict]:
    """Lines of events.jsonl: four launches, the saves of each, and why each of them ended."""
    hosts = [f"gpu{number:03d}" for number in range(1, -(-num_ranks // 8) + 1)]
    now_s = 0.0

    def line(event: str, **facts: object) -> dict:
        time = STARTED + datetime.timedelta(seconds=now_s)
        return {"time": time.isoformat(timespec="milliseconds"), "event": event, **facts}

    parts = [num_steps * part // 4 // SAVE_EVERY * SAVE_EVERY for part in (1, 2, 3)]
    yield line("job_started", job="40021", restart=0, tasks=num_ranks, hosts=hosts)
    for number, (first, last) in enumerate(zip([0, *parts], [*parts, num_steps], strict=True)):
        yield line("launched", ranks=num_ranks, hosts=hosts, resumed_from=first or None)
        now_s += 95
        yield line("first_step", step=first + 1, start_s=95.0)
        for step in range(first + SAVE_EVERY, last + 1, SAVE_EVERY):
            now_s += SAVE_EVERY * STEP_S + SAVE_S
            yield line("saved", step=step, save_s=SAVE_S, bytes=123_456_789_012)
        if number == 0:
            yield line("signal", step=last, signal="SIGUSR1", rank=0, host=hosts[0])
            yield line("interrupted", step=last, signal="SIGUSR1")
            yield line("job_requeued", job="40021", why="SIGUSR1 before the time limit")
            now_s += 3_600
            yield line("job_started", job="40021", restart=1, tasks=num_ranks, hosts=hosts)
        elif number == 1:
            yield line("hang", step=last + 1, waited_s=240.0, median_s=STEP_S, rank=LATE_RANK, host=hosts[-1])
        elif number == 2:
            rows = {"first_row": last * 512, "last_row": last * 512 + 511}
            yield line("rolled_back", to_step=last, from_step=last + 3, **rows, why="loss is not finite")


def main(argv: list[str] | None = None) -> int:
    """Make the run, say what it weighs."""
    parser = argparse.ArgumentParser(prog="long_run", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, metavar="N")
    parser.add_argument("--ranks", type=int, default=NUM_RANKS, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args(argv)
    make_run(args.out, args.steps, args.ranks, args.seed)
    num_bytes = sum(path.stat().st_size for path in args.out.rglob("*.jsonl"))
    print(f"{args.out}: {args.steps:,} steps, {args.ranks} ranks, {num_bytes / 1e6:.0f} MB of lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
