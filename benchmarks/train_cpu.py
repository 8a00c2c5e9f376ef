"""Training on a CPU beside plain `transformers`, one process each, fp32, the same samples in the same order.

    python -m benchmarks.train_cpu

Rival: `transformers`' own Qwen3-VL with SDPA attention and torch's fused AdamW, on padded batches
(train_cpu_rival.py). We: `medx train`, packed rows. Network of 53 M parameters, both from the same weights.

    mixed   samples of 16 to 700 text tokens, half of them with pictures      target 1.5 x the rival's tokens/s
    equal   text of 256 tokens a sample, so nothing is padded                 target 1.0 x

Tokens are those of the samples: padding counts for nobody. Time is that of steps, the first one left out; of ours it
holds reading, decoding and packing as well. A round is one run of each, the first of them in turn; figures are medians
over rounds. That both do the same work is held by their losses, which must agree at each step.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.train_cpu_data import EQUAL_TOKENS, build_workload
from megatron_medx.config.files import write_run_yaml
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.recipes import get_recipe
from megatron_medx.training.step_lines import read_metrics

TARGETS = {"mixed": 1.5, "equal": 1.0}
"""Least ratio of our tokens/s to the rival's."""

SAME_LOSS = 1e-3
"""Largest difference of a step's losses, nats; 5 steps apart rounding has grown to a tenth of it."""

NETWORK = (
    "model.hidden_size=512", "model.num_layers=8", "model.num_heads=8", "model.num_kv_heads=4", "model.head_dim=64",
    "model.ffn_hidden_size=1536", "model.mrope_section=12,10,10", "model.tie_embeddings=false",
    "model.vision.hidden_size=384", "model.vision.num_layers=8", "model.vision.num_heads=6",
    "model.vision.ffn_hidden_size=1536", "model.vision.deepstack_layers=1,3,5",
)  # fmt: skip
"""Overrides of the demo's network."""

RUN = (
    "parallel.tensor=1", "parallel.world_size=1", "precision.dtype=fp32", "data.packing=true",
    "data.seq_len_tokens=1024", "data.sample_align_tokens=1", "data.max_pixels=147456",
    "training.global_batch_rows=4", "optimizer.lr=1e-4", "optimizer.min_lr=1e-4", "optimizer.schedule=constant",
    "optimizer.warmup_tokens=0", "optimizer.weight_decay=0", "checkpoint.every_steps=1000000",
    "checkpoint.checksums=false", "log.tensorboard=false",
)  # fmt: skip

ROW_TOKENS = 1024
"""`data.seq_len_tokens` of RUN."""

BATCH_SAMPLES = {"mixed": 8, "equal": ROW_TOKENS // EQUAL_TOKENS}
"""Samples of the rival's batches; of equal length as many as fill one of our rows."""


@dataclass(frozen=True, slots=True)
class Side:
    """One run of one side."""

    tokens: int
    """Of the steps that count."""
    seconds: float
    losses: list[float]
    """Of each step."""

    @property
    def tokens_per_s(self) -> float:
        """Of the samples, padding left out."""
        return self.tokens / self.seconds


def write_network(model: ModelConfig, processor: Path, out: Path) -> None:
    """A Hugging Face directory with random weights, from which both sides start."""
    import torch
    import transformers

    from megatron_medx.checkpoint.hugging_face.hf_config import config_json

    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.Qwen3VLConfig(**config_json(model, torch.float32, {}))
    transformers.Qwen3VLForConditionalGeneration(config).float().save_pretrained(out)
    for path in processor.iterdir():
        shutil.copy(path, out / path.name)


def run_ours(folder: Path, words: Sequence[str], num_steps: int) -> Side:
    """`medx train` with these words into `folder`."""
    command = [sys.executable, "-m", "megatron_medx.cli", "train", "demo", *words, f"run.folder={folder}"]
    subprocess.run([*command, f"training.steps={num_steps}"], check=True, stdout=subprocess.DEVNULL)
    steps = read_metrics(folder / "metrics.jsonl")
    counted = steps[1:]
    seconds = sum(step["step_time_s"] for step in counted)
    return Side(sum(step["tokens"] for step in counted), seconds, [step["loss"] for step in steps])


def run_rival(run_yaml: Path, hf_folder: Path, num_steps: int, batch_samples: int) -> tuple[Side, float]:
    """The rival on the samples of the run that the file describes; also the share of padding in its batches."""
    words = map(str, (run_yaml, hf_folder, num_steps, batch_samples))
    command = [sys.executable, "-m", "benchmarks.train_cpu_rival", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    said = json.loads(done.stdout.splitlines()[-1])
    side = Side(sum(said["tokens"][1:]), sum(said["step_s"][1:]), said["loss"])
    return side, 1 - sum(said["tokens"]) / sum(said["slots"])


def measure(name: str, num_steps: int, num_rounds: int) -> dict[str, float]:
    """Figures of one workload.

    Raises:
        SystemExit: the two sides' tokens or losses differ: they did not do the same work.
    """
    speeds: dict[str, list[float]] = {"ours": [], "rival": []}
    with tempfile.TemporaryDirectory(prefix="medx-", dir=".") as scratch:
        data, hf = build_workload(name, Path(scratch) / "workload"), Path(scratch) / "hf"
        words = [*NETWORK, *RUN, f"data.path={data}", f"checkpoint.start_from={hf}"]
        config, run_yaml = apply_overrides(get_recipe("demo"), words), Path(scratch) / "run.yaml"
        write_network(config.model, data / "processor", hf)
        write_run_yaml(config, run_yaml, {})
        for number in range(num_rounds):
            for side in ("rival", "ours") if number % 2 else ("ours", "rival"):
                if side == "ours":
                    ours = run_ours(Path(scratch) / f"run-{number}", words, num_steps)
                else:
                    rival, padded = run_rival(run_yaml, hf, num_steps, BATCH_SAMPLES[name])
            check_same_work(ours, rival)
            speeds["ours"].append(ours.tokens_per_s)
            speeds["rival"].append(rival.tokens_per_s)
            print(f"{name} round {number + 1}: {ours.tokens_per_s:,.0f} and {rival.tokens_per_s:,.0f} tokens/s")
    mine, theirs = (statistics.median(values) for values in speeds.values())
    return {"tokens_per_s": mine, "rival_tokens_per_s": theirs, "ratio": mine / theirs, "rival_padded_share": padded}


def check_same_work(ours: Side, rival: Side) -> None:
    """Both sides trained on as many tokens and had the same losses.

    Raises:
        SystemExit: they did not.
    """
    if ours.tokens != rival.tokens:
        raise SystemExit(f"not the same work: {ours.tokens} and {rival.tokens} tokens")
    worst = max(abs(mine - theirs) for mine, theirs in zip(ours.losses, rival.losses, strict=True))
    if worst > SAME_LOSS:
        raise SystemExit(f"not the same work: losses differ by {worst:.2e}: {ours.losses} and {rival.losses}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and one JSON line; 0 when both targets are reached, 1 when one is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=tuple(TARGETS), default=list(TARGETS))
    parser.add_argument("--steps", type=int, default=6, help="of each run; the first does not count (default 6)")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    chosen = parser.parse_args(arguments)

    load = os.getloadavg()[0]
    figures = {name: measure(name, chosen.steps, chosen.rounds) for name in chosen.workloads}
    print(f"{'':8}{'tokens/s':>10}{'transformers':>14}{'ratio':>8}{'target':>8}")
    for name, figure in figures.items():
        reached = "reached" if figure["ratio"] >= TARGETS[name] else "MISSED"
        print(
            f"{name:8}{figure['tokens_per_s']:10,.0f}{figure['rival_tokens_per_s']:14,.0f}{figure['ratio']:8.2f}"
            f"{TARGETS[name]:8.1f}  {reached}; of the rival's tokens {figure['rival_padded_share']:.0%} are padding"
        )
    reached = all(figure["ratio"] >= TARGETS[name] for name, figure in figures.items())
    facts = {"benchmark": "train_cpu", "cores": os.cpu_count(), "load_before": round(load, 1), "reached": reached}
    print(json.dumps({**facts, **figures}))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
