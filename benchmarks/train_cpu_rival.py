"""The rival of train_cpu.py: plain `transformers` and torch's AdamW, on padded batches of the very same samples.

    python -m benchmarks.train_cpu_rival RUN_YAML HF_FOLDER NUM_STEPS BATCH_SAMPLES

Started by train_cpu.py as a process of its own. A step holds the samples that the run's step holds, in their order,
BATCH_SAMPLES at a time, padded to the longest of them; gradients are accumulated. Batches are made before the clock
starts, so reading, decoding and padding cost it nothing. Prints one JSON line: seconds, loss, tokens and slots (tokens
and padding) of each step.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers

from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.rows import RowDataset, build_row_dataset

Batches = list[dict[str, torch.Tensor]]
"""Arguments of the stock model's forward, one entry a batch."""

IGNORED = -100
"""Label of a token that is not learned."""


def samples_of_row(row: Microbatch, vision_start_token_id: int) -> Iterator[dict[str, torch.Tensor]]:
    """The samples of a row as the stock model takes them: tokens and labels (L,), patches and grids of its images."""
    patches = row.grids_I3.prod(dim=1).tolist()
    pixels, first_image = row.pixels_PC.split(patches), 0
    starts = row.cu_seqlens.tolist()
    for start, num_tokens in zip(starts, row.sample_tokens, strict=False):  # behind the last sample there is padding
        segment = slice(start, start + num_tokens)
        tokens, learned = row.tokens_1S[0, segment], row.loss_weights_1S[0, segment] > 0
        labels = torch.full_like(tokens, IGNORED)
        labels[1:] = torch.where(learned, row.labels_1S[0, segment], IGNORED)[:-1]  # the stock model shifts them back
        images = slice(first_image, first_image + int((tokens == vision_start_token_id).sum()))
        first_image = images.stop
        yield {"tokens": tokens, "labels": labels, "pixels": pixels[images], "grids": row.grids_I3[images]}


def padded_batch(samples: Sequence[dict], pad_token_id: int, image_token_id: int) -> dict[str, torch.Tensor]:
    """Arguments of the stock model's forward: samples below each other, padded on the right to the longest."""
    longest = max(len(sample["tokens"]) for sample in samples)
    shape = len(samples), longest
    tokens, labels = torch.full(shape, pad_token_id), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.int64)
    for place, sample in enumerate(samples):
        end = len(sample["tokens"])
        tokens[place, :end], labels[place, :end], mask[place, :end] = sample["tokens"], sample["labels"], 1
    batch = {"input_ids": tokens, "labels": labels, "attention_mask": mask}
    batch["mm_token_type_ids"] = (tokens == image_token_id).long()
    if pixels := [image for sample in samples for image in sample["pixels"]]:
        batch |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.cat([x["grids"] for x in samples])}
    return batch


def step_batches(
    config: RunConfig, dataset: RowDataset, step: int, batch_samples: int, by_length: bool = False
) -> Batches:
    """The padded batches of one step of a run, counted from 0; with `by_length` its samples are sorted first."""
    rows_per_step = config.training.global_batch_rows
    rows = [dataset[step * rows_per_step + row] for row in range(rows_per_step)]
    samples = [sample for row in rows for sample in samples_of_row(row, config.model.vision_start_token_id)]
    if by_length:
        samples.sort(key=lambda sample: len(sample["tokens"]))
    groups = [samples[first : first + batch_samples] for first in range(0, len(samples), batch_samples)]
    return [padded_batch(group, 0, config.model.image_token_id) for group in groups]


def make_optimizer(config: RunConfig, network: torch.nn.Module) -> torch.optim.Optimizer:
    """torch's fused AdamW with the run's settings."""
    section = config.optimizer
    return torch.optim.AdamW(
        network.parameters(),
        lr=section.lr,
        betas=(section.beta1, section.beta2),
        eps=section.eps,
        weight_decay=section.weight_decay,
        fused=True,
    )


def train(config: RunConfig, network: torch.nn.Module, steps: Sequence[Batches]) -> dict[str, list[float]]:
    """Seconds and loss of each step."""
    optimizer = make_optimizer(config, network)
    found: dict[str, list[float]] = {"step_s": [], "loss": []}
    for batches in steps:
        began_s = time.perf_counter()
        learned = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        total = 0.0
        for batch in batches:
            loss = network(**batch, num_items_in_batch=learned, use_cache=False).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        found["step_s"].append(time.perf_counter() - began_s)
        found["loss"].append(total)
    return found


def main(arguments: Sequence[str]) -> int:
    """Train and print the JSON line."""
    run_yaml, hf_folder, num_steps, batch_samples = arguments
    config = read_run_yaml(Path(run_yaml))
    transformers.utils.logging.disable_progress_bar()
    network = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        hf_folder, dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    dataset = build_row_dataset(config)
    steps = [step_batches(config, dataset, step, int(batch_samples)) for step in range(int(num_steps))]
    slots = [sum(batch["input_ids"].numel() for batch in batches) for batches in steps]
    tokens = [sum(int(batch["attention_mask"].sum()) for batch in batches) for batches in steps]
    print(json.dumps({"tokens": tokens, "slots": slots, **train(config, network, steps)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
