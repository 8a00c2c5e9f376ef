"""Stock networks as transformers saves them, and what it takes to prove that their conversion is right.

A round trip alone proves nothing: a rule that is wrong both ways survives it. So the converted weights are loaded by
Megatron into Megatron's network, and that must compute what transformers computes with the original.
"""

import dataclasses
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.running.logits import fixed_sample, stock_arguments
from megatron_medx.checkpoint.running.megatron_logits import load_network, network_logits
from megatron_medx.checkpoint.verify import bit_equal

LOGITS_TOLERANCE = 1e-5
"""Worst seen over SHAPES: 3.3e-6 (2026-11-23)."""

SHAPES = {
    "4 heads in 2 groups, DeepStack 0 2": {"heads": (4, 2, 16), "mrope": [4, 2, 2], "deepstack": [0, 2], "tied": False},
    "3 heads, no DeepStack, tied": {"heads": (3, 3, 8), "mrope": [2, 1, 1], "deepstack": [], "tied": True},
    "5 heads in 1 group, DeepStack 1": {"heads": (5, 1, 8), "mrope": [2, 1, 1], "deepstack": [1], "tied": False},
    "6 heads in 2 groups, 3 x DeepStack, tied": {
        "heads": (6, 2, 24),
        "mrope": [4, 4, 4],
        "deepstack": [0, 1, 2],
        "tied": True,
    },
    "5 experts, 2 a token": {
        "heads": (4, 2, 16),
        "mrope": [4, 2, 2],
        "deepstack": [0, 2],
        "tied": False,
        "experts": {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    },
    "8 experts, 3 a token, tied": {
        "heads": (3, 1, 8),
        "mrope": [2, 1, 1],
        "deepstack": [1],
        "tied": True,
        "experts": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 36},
    },
}
DENSE, EXPERTS = SHAPES["4 heads in 2 groups, DeepStack 0 2"], SHAPES["5 experts, 2 a token"]
HIDDEN = 40


def stock_model(shape):
    """A tiny stock Qwen3-VL model with every parameter random, norms and biases too."""
    heads, groups, head_dim = shape["heads"]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": shape["mrope"], "mrope_interleaved": True}
    of_config, of_network = transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration
    if "experts" in shape:
        of_config, of_network = transformers.Qwen3VLMoeConfig, transformers.Qwen3VLMoeForConditionalGeneration
    config = of_config(
        text_config={
            **shape.get("experts", {}),
            "vocab_size": 96,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 3,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "head_dim": head_dim,
            "intermediate_size": 56,
            "rope_parameters": rope,
        },
        vision_config={
            "hidden_size": 48,
            "depth": 3,
            "num_heads": 4,  # not 3: rows [3, heads] and [heads, 3] must not be the same
            "intermediate_size": 36,
            "deepstack_visual_indexes": shape["deepstack"],
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 16,
        },
        tie_word_embeddings=shape["tied"],
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    config._experts_implementation = "eager"  # the loop of its class; the grouped kernel refuses awkward widths
    torch.manual_seed(0)
    model = of_network(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def prove_conversion(stock, folder: Path, scratch: Path, groups) -> float:
    """Convert there and back, and run both networks.

    Args:
        stock: the network.
        folder: where transformers saved it.
        scratch: for `root` and `back`.
        groups: Megatron's process groups of one rank.
    Returns:
        The largest difference of logits.
    Raises:
        AssertionError: a bit or a logit is another.
    """
    to_megatron(folder, scratch / "root")
    to_hf(scratch / "root", scratch / "back")
    assert other_tensors(folder, scratch / "back") == [], "bits differ"
    checkpoint = MegatronCheckpoint(scratch / "root")
    difference = (megatron_logits(checkpoint, groups) - stock_logits(stock, checkpoint.model)).abs().max().item()
    assert difference < LOGITS_TOLERANCE, f"logits differ by {difference:.2e}"
    return difference


def stock_logits(stock, model) -> torch.Tensor:
    """(S, V) of the stock network on the fixed sample."""
    with torch.inference_mode():
        return stock(**stock_arguments(model, fixed_sample(model))).logits[0]


def megatron_logits(checkpoint, groups) -> torch.Tensor:
    """(S, V) of the network that Megatron loads, on the fixed sample."""
    return network_logits(load_network(checkpoint, groups), dataclasses.asdict(fixed_sample(checkpoint.model)))


def other_tensors(first: Path, second: Path) -> list[str]:
    """Names of what is not the same, bit for bit, in two directories, read by safetensors itself."""
    left, right = (_in_hub_layout(load_file(folder / "model.safetensors")) for folder in (first, second))
    return [key for key in left | right if key not in left or key not in right or not bit_equal(left[key], right[key])]


def _in_hub_layout(tensors):
    """transformers 5 may save experts as [experts, out, in]."""
    for key, part in tensors.items():
        if ".experts." in key and part.shape[1 if key.endswith("gate_up_proj") else 2] != HIDDEN:
            tensors[key] = part.transpose(1, 2)
    return tensors
