"""Two exports, dense and mixture of experts, as every program downstream gets them.

Random weights, seeded -> `to_megatron` -> `to_hf`. Tokenizer, chat template and preprocessor files come from the writer
of the demo's, with a vocabulary of 326 tokens. 0.4 M parameters each; a 64 x 64 image is 4 tokens.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.hugging_face.hf_config import config_json
from megatron_medx.checkpoint.layout.rules import bindings, hf_shapes
from megatron_medx.config.model import ModelConfig, VisionConfig
from megatron_medx.config.processor import vision_token_ids
from megatron_medx.data.demo import tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"  # here and in every server or trainer that a test starts

NUM_TRAINED_TOKENS = 300
TEXT = (
    "Which imaging modality is this? This is a frontal chest radiograph.",
    "Is there a pleural effusion? No, the costophrenic angles are sharp.",
    "Describe the fundus photograph. The optic disc is well defined, with hard exudates near the macula.",
    "A computed tomography of the abdomen shows a hypodense lesion of the liver, 12 mm in diameter.",
    "Answer yes or no. Yes. The question is about the image and the answer is a number.",
)
"""What the tokenizer is trained on; it yields more merges than NUM_TRAINED_TOKENS needs."""


@pytest.fixture(scope="session")
def processor_dir(tmp_path_factory) -> Path:
    """Tokenizer, chat template and preprocessor files in the hub's style."""
    folder = tmp_path_factory.mktemp("processor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "NUM_TRAINED_TOKENS", NUM_TRAINED_TOKENS)
        tokenizer.write_processor(folder, TEXT)
    return folder


@pytest.fixture(scope="session")
def export_dir(processor_dir, tmp_path_factory) -> Path:
    """A dense export, output layer of its own. Read only: tests copy it before they change it."""
    return export(handoff_model(processor_dir), processor_dir, tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def moe_export_dir(processor_dir, tmp_path_factory) -> Path:
    """A mixture-of-experts export: 6 experts, 2 a token. Read only."""
    model = handoff_model(processor_dir, num_experts=6, experts_per_token=2, expert_ffn_hidden_size=24)
    return export(model, processor_dir, tmp_path_factory.mktemp("moe"))


@pytest.fixture(scope="session")
def tied_export_dir(processor_dir, tmp_path_factory) -> Path:
    """A dense export whose output layer is the embedding. Read only."""
    return export(handoff_model(processor_dir, tie_embeddings=True), processor_dir, tmp_path_factory.mktemp("tied"))


def handoff_model(processor_dir: Path, **changes) -> ModelConfig:
    """Three decoder and four tower layers; no two sizes of one tensor are equal, so that no swap goes unseen."""
    sizes = {
        "hidden_size": 40,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "ffn_hidden_size": 56,
        "vocab_size": NUM_TRAINED_TOKENS + 26,
        "mrope_section": (4, 2, 2),
        "max_positions": 4096,
        "vision": VisionConfig(
            hidden_size=48,
            num_layers=4,
            num_heads=3,
            ffn_hidden_size=60,
            deepstack_layers=(0, 1, 3),  # three, as in every published size: SGLang takes no other number
            num_position_embeddings=64,
        ),
    }
    return ModelConfig(**sizes | vision_token_ids(processor_dir) | changes)


def export(model: ModelConfig, processor_dir: Path, folder: Path) -> Path:
    """Random weights through a Megatron checkpoint and out again, with the processor's files."""
    source, root, out = folder / "random", folder / "megatron", folder / "export"
    source.mkdir()
    save_file(random_weights(model), source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_text(json.dumps(config_json(model, torch.float32, {})))
    for file in processor_dir.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    to_megatron(source, root)
    to_hf(root, out)
    return out


def random_weights(model: ModelConfig) -> dict[str, torch.Tensor]:
    """Key -> tensor in the hub's layout, fp32, of the size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for key, shape in hf_shapes(bindings(model)).items():
        noise = torch.randn(shape, generator=generator)
        is_norm = key.endswith("weight") and len(shape) == 1
        weights[key] = 1 + 0.1 * noise if is_norm else noise * (0.1 if len(shape) == 1 else shape[-1] ** -0.5)
    return weights
