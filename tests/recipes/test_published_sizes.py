"""The published sizes hold the values of the hub's config.json files, as public places repeat them.

No hub was at hand. recipes/sizes.py says which repository or page each row below was read in (2026-11). What no source
states for a size alone, the ids of image tokens for instance, stands once for all.
"""

import json

import pytest

from megatron_medx.checkpoint.hugging_face.hf_config import read_config
from megatron_medx.config.parameters import active_layer_matrices, parameter_counts
from megatron_medx.recipes import sizes
from megatron_medx.recipes.cluster import CLUSTER_SIZES

DECODER_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "moe_intermediate_size",
)  # fmt: skip
DECODERS = {
    "2b": (2048, 28, 16, 8, 6144),
    "4b": (2560, 36, 32, 8, 9728),
    "8b": (4096, 36, 32, 8, 12288),
    "32b": (5120, 64, 64, 8, 25600),
    "30b_a3b": (2048, 48, 32, 4, 6144, 768),
    "235b_a22b": (4096, 94, 64, 4, 12288, 1536),
}
"""Size -> values of DECODER_KEYS; the last one is of mixtures of experts."""
EVERY_DECODER = {
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    "max_position_embeddings": 262144,
    "hidden_act": "silu",
    "attention_bias": False,
}
EVERY_MIXTURE = {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
EVERY_TOWER = {
    "num_heads": 16,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
    "num_position_embeddings": 2304,
    "hidden_act": "gelu_pytorch_tanh",
}
TOKEN_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
TIED = ("2b", "4b")
BILLIONS = {"2b": 2.13, "4b": 4.44, "8b": 8.77, "32b": 33.4, "30b_a3b": 31.1, "235b_a22b": 236}
"""Of all parameters, to three digits. 4B: a model list (4.44); 32B: 66.7 GB of bf16, a model list; 30B-A3B: a model
list (31.07); 2B, 8B and 235B-A22B from memory."""


def config_json(size: str) -> dict:
    """What the hub's file says of a network, without lines that no network needs."""
    is_moe = len(DECODERS[size]) == len(DECODER_KEYS)
    kind, family = ("qwen3_vl_moe", "Qwen3VLMoe") if is_moe else ("qwen3_vl", "Qwen3VL")
    decoder = dict(zip(DECODER_KEYS, DECODERS[size], strict=False)) | EVERY_DECODER | (EVERY_MIXTURE if is_moe else {})
    tower = (SMALL_TOWER if size in TIED else LARGE_TOWER) | EVERY_TOWER
    return TOKEN_IDS | {
        "architectures": [f"{family}ForConditionalGeneration"],
        "model_type": kind,
        "tie_word_embeddings": size in TIED,
        "text_config": decoder | {"model_type": f"{kind}_text"},
        "vision_config": tower | {"model_type": kind, "out_hidden_size": decoder["hidden_size"]},
    }


@pytest.mark.parametrize("size", CLUSTER_SIZES)
def test_a_size_is_what_its_config_json_says(size, tmp_path):
    """hf_config.py reads the file: each field of the network comes from one of the hub's, or is a built-in one."""
    (tmp_path / "config.json").write_text(json.dumps(config_json(size)))
    assert read_config(tmp_path / "config.json") == getattr(sizes, f"qwen3_vl_{size}")()


@pytest.mark.parametrize("size", CLUSTER_SIZES)
def test_a_size_has_the_published_number_of_parameters(size):
    total = sum(parameter_counts(CLUSTER_SIZES[size].model()).values()) / 1e9
    assert float(f"{total:.3g}") == BILLIONS[size]


@pytest.mark.parametrize(("size", "active"), [("30b_a3b", 3.3), ("235b_a22b", 22.2)])
def test_a_token_of_text_uses_as_many_parameters_as_the_name_says(size, active):
    """Embedding and output layer included."""
    model = CLUSTER_SIZES[size].model()
    used = model.num_layers * active_layer_matrices(model) + 2 * model.vocab_size * model.hidden_size
    assert float(f"{used / 1e9:.3g}") == pytest.approx(active, abs=0.1)
