"""Run weights on the same samples, each in the network that is theirs, and say how far they lie apart.

A Hugging Face directory runs in stock `transformers`, a Megatron checkpoint in our Megatron network, both in fp32 on
the CPU. transformers is imported when it is needed, because plain conversion does without it.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.reports.tensor_norms import distance
from megatron_medx.checkpoint.running.megatron_logits import write_megatron_logits
from megatron_medx.checkpoint.weights import Weights
from megatron_medx.config.model import ModelConfig

_TEXT_TOKENS = (8, 5, 7)
"""Before, between and behind the images."""
_IMAGES = ((2, 3), (4, 1))
"""Height and width of the images in merged tokens: not square, so that a swap of the two shows."""

_LOSS_TOKENS = 256
"""Tokens whose losses are computed at once: 156 MB of logits of Qwen's vocabulary."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as a network takes it, with S tokens and P patches of I images; fields as in `data.microbatch`."""

    tokens_1S: torch.Tensor
    """(1, S) int64; image placeholders included."""
    labels_1S: torch.Tensor
    """(1, S) int64 next token; anything where the weight is 0."""
    loss_weights_1S: torch.Tensor
    """(1, S) float32: what the loss of each label counts."""
    positions_3S: torch.Tensor
    """(3, S) int64, M-RoPE: time, height, width. transformers derives its own."""
    pixels_PC: torch.Tensor
    """(P, C) float32 normalized patches."""
    grids_I3: torch.Tensor
    """(I, 3) int64 patches along frames, height and width."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """How far two networks' outputs on the same samples lie apart; None stands for what is not finite."""

    logits_max_abs_diff: float | None
    """Largest difference of any logit."""
    losses: tuple[float | None, float | None]
    """Mean cross entropy of the next token, in nats, over the weighted labels of all samples."""


def compare_outputs(first: Weights, second: Weights, samples: Sequence[Sample]) -> Outputs:
    """Run both networks, one after the other; logits wait on the disk, so memory holds one network or two samples."""
    with tempfile.TemporaryDirectory(prefix="medx-") as scratch:
        folders = [Path(scratch) / side for side in ("first", "second")]
        for weights, folder in zip((first, second), folders, strict=True):
            folder.mkdir()
            _write_logits(weights, samples, folder)
        differences, sums = [], [0.0, 0.0]
        for number, sample in enumerate(samples):
            pair = [torch.load(folder / f"{number}.pt", mmap=True) for folder in folders]
            differences.append(distance(*pair).max_abs_diff)
            for side, logits_SV in enumerate(pair):
                sums[side] += loss_sum(logits_SV, sample)
    weight = sum(sample.loss_weights_1S.double().sum().item() for sample in samples)
    losses = [total / weight if weight and math.isfinite(total) else None for total in sums]
    return Outputs(None if None in differences else max(differences), tuple(losses))


def loss_sum(logits_SV: torch.Tensor, sample: Sample) -> float:
    """Weighted sum of the cross entropies of a sample's labels, in nats."""
    total = 0.0
    pieces = (logits_SV, sample.labels_1S[0], sample.loss_weights_1S[0])
    for logits, labels, weights in zip(*(piece.split(_LOSS_TOKENS) for piece in pieces), strict=True):
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        total += (losses.double() * weights).sum().item()
    return total


def available_bytes() -> int:
    """Memory that new programs can have without swapping."""
    return psutil.virtual_memory().available


def needed_bytes(model: ModelConfig, weights_bytes: int, samples: Sequence[Sample]) -> int:
    """Memory that `compare_outputs` needs.

    Args:
        model: sizes of the network.
        weights_bytes: of one network in fp32.
        samples: what is run.
    """
    longest = max(sample.tokens_1S.numel() for sample in samples)
    return weights_bytes + 2 * 4 * longest * model.vocab_size + _PROGRAM_BYTES


_PROGRAM_BYTES = 1_000_000_000
"""transformers or Megatron with torch, and activations."""


def _write_logits(weights: Weights, samples: Sequence[Sample], folder: Path) -> None:
    """Write the logits (S, V), fp32, of each sample into `folder` as 0.pt, 1.pt, ..."""
    if isinstance(weights, MegatronCheckpoint):
        write_megatron_logits(weights, samples, folder)
        return
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # eager: the loop over experts; the fused one refuses widths that are no multiple of 16 bytes
    stock = transformers.AutoModelForImageTextToText.from_pretrained(
        weights.folder, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    with torch.inference_mode():
        for number, sample in enumerate(samples):
            torch.save(stock(**stock_arguments(weights.model, sample)).logits[0].clone(), folder / f"{number}.pt")


def stock_arguments(model: ModelConfig, sample: Sample) -> dict[str, torch.Tensor]:
    """A sample as the arguments of the stock model's forward; it works out the positions itself."""
    tokens_1S = sample.tokens_1S
    images = {}
    if len(sample.grids_I3):
        images = {"pixel_values": sample.pixels_PC, "image_grid_thw": sample.grids_I3}
    return {
        "input_ids": tokens_1S,
        "attention_mask": torch.ones_like(tokens_1S),
        "mm_token_type_ids": (tokens_1S == model.image_token_id).long(),
        **images,
    }


def fixed_sample(model: ModelConfig) -> Sample:
    """Random text around two random images of different uneven size; all text but the first token is predicted."""
    generator = torch.Generator().manual_seed(0)
    special = [model.image_token_id, model.video_token_id, model.vision_start_token_id, model.vision_end_token_id]
    ordinary = torch.tensor(sorted(set(range(model.vocab_size)) - set(special)))
    tokens, positions, start = [], [], 0
    for number, length in enumerate(_TEXT_TOKENS):
        text = ordinary[torch.randint(len(ordinary), (length,), generator=generator)].tolist()
        if number:
            text = [model.vision_end_token_id, *text]
        if number < len(_IMAGES):
            text = [*text, model.vision_start_token_id]
        tokens += text
        positions.append((start + torch.arange(len(text))).expand(3, -1))
        start += len(text)
        if number < len(_IMAGES):
            height, width = _IMAGES[number]
            tokens += [model.image_token_id] * (height * width)
            # an image starts where the text before it ends, on all three axes; the text goes on behind its longer side
            positions.append(start + torch.cartesian_prod(torch.zeros(1).long(), *map(torch.arange, (height, width))).T)
            start += max(height, width)
    merge = model.vision.merge_size
    grids_I3 = torch.tensor([[1, height * merge, width * merge] for height, width in _IMAGES])
    tokens_1S = torch.tensor([tokens])
    labels_1S = torch.cat([tokens_1S[:, 1:], tokens_1S[:, :1]], dim=1)
    weights_1S = (~torch.isin(labels_1S, torch.tensor(special))).float()
    weights_1S[:, -1] = 0.0
    return Sample(
        tokens_1S=tokens_1S,
        labels_1S=labels_1S,
        loss_weights_1S=weights_1S,
        positions_3S=torch.cat(positions, dim=1),
        pixels_PC=torch.randn(int(grids_I3.prod(dim=1).sum()), model.vision.patch_dim, generator=generator),
        grids_I3=grids_I3,
    )
