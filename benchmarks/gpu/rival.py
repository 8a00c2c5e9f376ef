"""The rival of gpu.py: plain `transformers` and torch's fused AdamW, on padded batches of the very same samples.

    python -m benchmarks.gpu.rival RUN_YAML OUT_JSON --steps N --batches 4 8 [--sorted]

Network, weights' dtype and optimizer as its users take them where speed is what counts: bf16 weights, bf16 moments, the
best attention that is installed (flash-attn, else SDPA), no recomputation, gradients accumulated over a step's batches
and clipped. That is less work and less memory than ours, which keeps fp32 weights, gradients and moments.

A step holds the samples that the run's step holds, in their order, so many at a time, padded to the longest of them;
`--sorted` sorts a step's samples by length first (`group_by_length`). Batches are made and pinned before the clock
starts: reading, decoding and padding cost it nothing. Each batch size trains on from where the one before ended.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from benchmarks.train_cpu_rival import IGNORED, Batches, make_optimizer, step_batches
from megatron_medx.checkpoint.hugging_face.hf_config import config_json
from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.flops import step_flops
from megatron_medx.config.run import RunConfig
from megatron_medx.data.rows import build_row_dataset

WARM_STEPS = 2
"""Steps of each batch size that do not count."""


def best_attention() -> str:
    """What `attn_implementation` is set to."""
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"


def make_network(config: RunConfig, device: str) -> torch.nn.Module:
    """The stock network of the run's sizes with random weights, bf16, on the device."""
    stock = transformers.Qwen3VLConfig(**config_json(config.model, torch.bfloat16, {}))
    with torch.device(device):
        network = transformers.AutoModelForImageTextToText.from_config(
            stock, dtype=torch.bfloat16, attn_implementation=best_attention()
        )
    return network.train()


def pinned(batches: Batches) -> Batches:
    """The batches in pinned memory, where there is a GPU."""
    if not torch.cuda.is_available():
        return batches
    return [{name: value.pin_memory() for name, value in batch.items()} for batch in batches]


def train_step(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, clip_grad_norm: float, device: str
) -> float:
    """Train on the batches of one step; its seconds, the GPU's work included."""
    synchronize()
    began_s = time.perf_counter()
    learned = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    for batch in batches:
        moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        network(**moved, num_items_in_batch=learned, use_cache=False).loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), clip_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    synchronize()
    return time.perf_counter() - began_s


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def figures(config: RunConfig, steps: Sequence[tuple[Batches, float]]) -> dict[str, float]:
    """What the counted steps amount to: tokens of samples (padding is nobody's), model FLOPs as of our own runs."""
    tokens = slots = 0
    flops = dict.fromkeys(("decoder", "output", "total"), 0)
    for batches, _ in steps:
        for batch in batches:
            lengths = batch["attention_mask"].sum(dim=1).tolist()
            patches = batch["image_grid_thw"].prod(dim=1).tolist() if "image_grid_thw" in batch else []
            tokens += sum(lengths)
            slots += batch["input_ids"].numel()
            of_batch = step_flops(config.model, lengths, patches)
            flops = {part: of_batch[part] + sum_before for part, sum_before in flops.items()}
    seconds = sum(took_s for _, took_s in steps)
    return {
        "tokens_per_s": tokens / seconds,
        "model_tflops_per_s": flops["total"] / seconds / 1e12,
        "decoder_share": (flops["decoder"] + flops["output"]) / flops["total"],
        "step_s": statistics.median(took_s for _, took_s in steps),
        "tokens": tokens,
        "padded_share": 1 - tokens / slots,
        "layers": config.model.num_layers,
    }


def measure(config: RunConfig, num_steps: int, batch_sizes: Sequence[int], by_length: bool) -> dict[str, dict]:
    """Figures of each batch size; of one that does not fit the GPU `error`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.run.seed)
    network, dataset, found = make_network(config, device), build_row_dataset(config), {}
    optimizer, clip_grad_norm = make_optimizer(config, network), config.optimizer.clip_grad_norm
    for batch_samples in batch_sizes:
        try:
            steps = []
            for step in range(num_steps):
                batches = pinned(step_batches(config, dataset, step, batch_samples, by_length))
                steps.append((batches, train_step(network, optimizer, batches, clip_grad_norm, device)))
            found[str(batch_samples)] = figures(config, steps[WARM_STEPS:])
        except torch.OutOfMemoryError as error:
            optimizer.zero_grad()
            found[str(batch_samples)] = {"error": str(error).splitlines()[0]}
        if device == "cuda":
            found[str(batch_samples)]["peak_bytes"] = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.empty_cache()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Train with each batch size and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.rival", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=WARM_STEPS + 4, help="of each batch size, two of them warm-up")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--sorted", action="store_true")
    chosen = parser.parse_args(arguments)
    config = read_run_yaml(chosen.config)
    found = measure(config, chosen.steps, chosen.batches, chosen.sorted)
    facts = {"attention": best_attention(), "transformers": transformers.__version__, "by_length": chosen.sorted}
    chosen.out.write_text(json.dumps(facts | {"batches": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
