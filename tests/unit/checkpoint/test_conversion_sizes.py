"""Every published size: a config.json in the hub's words is read, its key plan is total, and it is written back.

Where the numbers come from: all sizes agree with copies of the hub's values in public places (seen 2026-11-23), which
recipes/sizes.py names. Totals of the text-only decoders are Qwen3's own, from memory, to the last digit; those of
the Qwen3-VLs to three digits: 2B to 32B from memory, 30B-A3B 31.07 by a model list, 235B-A22B 236 from memory.
"""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from conversion_networks import random_tensors, tiny_model, write_hf

from megatron_medx.checkpoint.hugging_face.hf_config import config_json, read_config
from megatron_medx.checkpoint.hugging_face.hf_directory import HfDirectory
from megatron_medx.checkpoint.layout.rules import DECODER_RULES, bindings, check_total, hf_shapes, megatron_shapes
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.sources.two_parents import TwoParents
from megatron_medx.recipes import sizes

GENERATION_IDS = {"bos_token_id": 151643, "eos_token_id": 151645}
NOT_ON_THE_HUB = {"dtype", "text_config.tie_word_embeddings", "text_config.router_aux_loss_coef"}
"""What we state besides: dtype at the top for transformers 5, the tie for inference servers, the trained balance."""


@dataclass(frozen=True)
class Published:
    """One size, in the words of its config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_key_value_heads: int = 8
    tied: bool = False
    small_tower: bool = False
    moe_intermediate_size: int = 0
    billions: float = 0.0
    """The whole Qwen3-VL."""
    decoder_parameters: int = 0
    """The text-only Qwen3 of the same size."""


SIZES = {
    "2B": Published(2048, 28, 16, 6144, tied=True, small_tower=True, billions=2.13, decoder_parameters=1_720_574_976),
    "4B": Published(2560, 36, 32, 9728, tied=True, small_tower=True, billions=4.44, decoder_parameters=4_022_468_096),
    "8B": Published(4096, 36, 32, 12288, billions=8.77, decoder_parameters=8_190_735_360),
    "32B": Published(5120, 64, 64, 25600, billions=33.4, decoder_parameters=32_762_123_264),
    "30B-A3B": Published(2048, 48, 32, 6144, 4, moe_intermediate_size=768, billions=31.1,
                         decoder_parameters=30_532_122_624),
    "235B-A22B": Published(4096, 94, 64, 12288, 4, moe_intermediate_size=1536, billions=236,
                           decoder_parameters=235_093_634_560),
}  # fmt: skip


def decoder(size):
    """The lines that a Qwen3-VL's text section and a text-only Qwen3 have in common."""
    experts = {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": size.moe_intermediate_size,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    }
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        **GENERATION_IDS,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": size.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": size.intermediate_size,
        "num_attention_heads": size.num_attention_heads,
        "num_hidden_layers": size.num_hidden_layers,
        "num_key_value_heads": size.num_key_value_heads,
        "rms_norm_eps": 1e-06,
        "use_cache": True,
        "vocab_size": 151936,
        **(experts if size.moe_intermediate_size else {}),
    }


def hub_config(size):
    """config.json of a Qwen3-VL as the hub has it."""
    name = "qwen3_vl_moe" if size.moe_intermediate_size else "qwen3_vl"
    tower = (24, 1024, 4096, [5, 11, 17]) if size.small_tower else (27, 1152, 4304, [8, 16, 24])
    depth, width, inner, taps = tower
    return {
        "architectures": [f"Qwen3VL{'Moe' if size.moe_intermediate_size else ''}ForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": name,
        "text_config": {
            **decoder(size),
            "dtype": "bfloat16",
            "max_position_embeddings": 262144,
            "model_type": f"{name}_text",
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
        },
        "tie_word_embeddings": size.tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": 151656,
        "vision_config": {
            "deepstack_visual_indexes": taps,
            "depth": depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": width,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": inner,
            "model_type": name,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": size.hidden_size,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }


def text_config(size):
    """config.json of the text-only Qwen3 of the same size, as the hub has it."""
    moe = bool(size.moe_intermediate_size)
    more = {"output_router_logits": False, "router_aux_loss_coef": 0.001} if moe else {}
    return {
        "architectures": ["Qwen3MoeForCausalLM" if moe else "Qwen3ForCausalLM"],
        **decoder(size),
        **more,
        "max_position_embeddings": 40960,
        "max_window_layers": size.num_hidden_layers,
        "model_type": "qwen3_moe" if moe else "qwen3",
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": size.tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_sliding_window": False,
    }


def flat(config, prefix=""):
    """Dotted path -> value."""
    found = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def read(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_config(tmp_path / "config.json")


@pytest.mark.parametrize("name", SIZES)
def test_config_json_is_read_and_written_back_as_the_hub_has_it(tmp_path, name):
    hub = hub_config(SIZES[name])
    model = read(tmp_path, hub)
    written = flat(config_json(model, torch.bfloat16, GENERATION_IDS))
    assert set(written) - set(flat(hub)) <= NOT_ON_THE_HUB
    assert {path: written[path] for path in flat(hub) if path != "transformers_version"} == {
        path: value for path, value in flat(hub).items() if path != "transformers_version"
    }
    assert written["dtype"] == "bfloat16" and written["text_config.tie_word_embeddings"] == SIZES[name].tied
    assert read(tmp_path, config_json(model, torch.bfloat16, GENERATION_IDS)) == model


@pytest.mark.parametrize("name", SIZES)
def test_it_is_the_size_that_recipes_train(tmp_path, name):
    trained = getattr(sizes, f"qwen3_vl_{name.lower().replace('-', '_')}")
    assert read(tmp_path, hub_config(SIZES[name])) == trained()


@pytest.mark.parametrize("name", SIZES)
def test_the_key_plan_is_total_and_has_the_published_number_of_parameters(tmp_path, name):
    size = SIZES[name]
    bound = bindings(read(tmp_path, hub_config(size)))
    keys = [key for one in bound for key in one.hf_keys]
    assert len(keys) == len(set(keys)) and len({one.megatron_key for one in bound}) == len(bound)
    shapes = hf_shapes(bound)
    check_total(shapes, {key: TensorSpec(shape, torch.bfloat16) for key, shape in shapes.items()}, name)
    total = sum(map(math.prod, shapes.values()))
    assert total == sum(map(math.prod, megatron_shapes(bound).values()))
    assert float(f"{total / 1e9:.3g}") == size.billions
    of_decoder = hf_shapes(bindings(read(tmp_path, hub_config(size)), DECODER_RULES))
    assert sum(map(math.prod, of_decoder.values())) == size.decoder_parameters


class Opened:
    """In place of a directory with weights: every tensor that the network needs, by shape alone."""

    def __init__(self, model):
        self.model = model
        self.specs = {key: TensorSpec(shape, torch.bfloat16) for key, shape in hf_shapes(bindings(model)).items()}


@pytest.mark.parametrize("name", SIZES)
def test_the_text_only_parent_of_a_size_joins_its_tower(tmp_path, monkeypatch, name):
    """Weights are stood in for by their headers: one matrix an expert, as Qwen3-MoE directories have them."""
    size, specs = SIZES[name], {}
    model = read(tmp_path, hub_config(size))
    for key, shape in hf_shapes(bindings(model, DECODER_RULES)).items():
        key = key.replace("model.language_model.", "model.")
        if ".experts." not in key:
            specs[key] = shape
            continue
        experts, _, kind = key.rpartition(".")
        names = ("gate", "up") if kind == "gate_up_proj" else ("down",)
        part = (shape[2] // len(names), shape[1])
        specs |= {f"{experts}.{expert}.{one}_proj.weight": part for expert in range(128) for one in names}
    files = {}
    for key, shape in specs.items():
        files[key] = type("File", (), {"specs": {key: TensorSpec(shape, torch.bfloat16)}})()
    monkeypatch.setattr("megatron_medx.checkpoint.sources.two_parents.open_weight_files", lambda folder: files)
    monkeypatch.setattr("megatron_medx.checkpoint.sources.two_parents.HfDirectory", lambda folder: Opened(model))
    (tmp_path / "config.json").write_text(json.dumps(text_config(size)))
    joined = TwoParents(tmp_path, tmp_path / "vl")
    assert (joined.model.rope_theta, joined.model.max_positions) == (1e6, 40960)
    assert {key: spec.shape for key, spec in joined.specs.items()} == hf_shapes(bindings(model))


def test_a_directory_of_another_size_is_not_taken_for_it(tmp_path):
    """A wrong width in config.json is found by the tensors."""
    hf = write_hf(tmp_path / "hf", tiny_model(), random_tensors(tiny_model()))
    config = json.loads((hf / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 57
    (hf / "config.json").write_text(json.dumps(config))
    source = HfDirectory(hf)
    with pytest.raises(
        Exception, match=r"6 tensors of another shape: .*gate_proj\.weight \[56, 40\] instead of \[57, 40"
    ):
        check_total(hf_shapes(bindings(source.model)), source.specs, "hf")
