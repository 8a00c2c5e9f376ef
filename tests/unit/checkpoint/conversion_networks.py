"""Tiny networks with awkward shapes, and directories that hold random weights for them.

The Hugging Face directories are written by the safetensors library itself, not by the code under test.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_medx.checkpoint.hugging_face.hf_config import config_json
from megatron_medx.checkpoint.layout.rules import bindings, hf_shapes
from megatron_medx.config.model import ModelConfig, VisionConfig

TOKEN_IDS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}


def tiny_model(
    heads=4, groups=2, head_dim=16, mrope=(4, 2, 2), deepstack=(0, 2), tied=False, vision_heads=2, experts=(0, 0)
):
    """A Qwen3-VL network of two decoder and three tower layers; `experts`: how many there are, how many a token has."""
    return ModelConfig(
        hidden_size=40,
        num_layers=2,
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=head_dim,
        ffn_hidden_size=56,
        num_experts=experts[0],
        experts_per_token=experts[1],
        expert_ffn_hidden_size=12 if experts[0] else 0,
        vocab_size=96,
        mrope_section=mrope,
        tie_embeddings=tied,
        max_positions=512,
        **TOKEN_IDS,
        vision=VisionConfig(
            hidden_size=8 * vision_heads,
            num_layers=3,
            num_heads=vision_heads,
            ffn_hidden_size=36,
            deepstack_layers=deepstack,
            patch_size=4,
            num_position_embeddings=16,
        ),
    )


MODELS = {
    "grouped heads, two DeepStack layers": tiny_model(),
    "as many groups as heads, no DeepStack, tied": tiny_model(3, 3, 8, (2, 1, 1), (), True, 3),
    "one group of five heads, one DeepStack layer": tiny_model(5, 1, 8, (2, 1, 1), (1,), False, 3),
    "head size that does not divide the width, three DeepStack layers, tied": tiny_model(
        6, 2, 24, (4, 4, 4), (0, 1, 2), True, 5
    ),
    "five experts, two a token": tiny_model(experts=(5, 2)),
    "eight experts, three a token, tied": tiny_model(3, 1, 8, (2, 1, 1), (1,), True, 3, experts=(8, 3)),
}


def random_tensors(model: ModelConfig, dtype=torch.float32, seed=0) -> dict[str, torch.Tensor]:
    """Key -> random tensor in Hugging Face layout."""
    generator = torch.Generator().manual_seed(seed)
    shapes = hf_shapes(bindings(model))
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}


def write_hf(folder: Path, model: ModelConfig, tensors: dict[str, torch.Tensor]) -> Path:
    """A directory with config.json and model.safetensors."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dtype = next(iter(tensors.values())).dtype
    (folder / "config.json").write_text(json.dumps(config_json(model, dtype, {})))
    return folder
