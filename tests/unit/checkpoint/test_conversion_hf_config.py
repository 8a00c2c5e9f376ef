"""config.json in the hub's style: written, read back, and read in transformers 5's style."""

import json

import pytest
import torch
from conversion_networks import tiny_model

from megatron_medx.checkpoint.hugging_face.hf_config import config_json, generation_config_json, read_config
from megatron_medx.errors import CheckpointError

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1}


def write(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return path


def test_the_sizes_come_back(model, tmp_path):
    assert read_config(write(tmp_path, config_json(model, torch.bfloat16, TOKENS))) == model


def test_the_style_is_the_hubs(one_model):
    config = config_json(one_model, torch.bfloat16, TOKENS)
    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert config["tie_word_embeddings"] is False and config["dtype"] == "bfloat16"
    text = config["text_config"]
    assert text["rope_scaling"] == {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"}
    assert text["rope_theta"] == 5e6 and "rope_parameters" not in text
    assert (text["bos_token_id"], text["eos_token_id"]) == (1, 2)
    assert config["vision_config"]["out_hidden_size"] == one_model.hidden_size
    assert config["vision_config"]["deepstack_visual_indexes"] == [0, 2]


def test_transformers_5_style_is_read_the_same(one_model, tmp_path):
    config = config_json(one_model, torch.float32, {})
    text = config["text_config"]
    text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), **text.pop("rope_scaling")}
    config["vision_config"]["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "axial"}
    assert read_config(write(tmp_path, config)) == one_model


def moe_config():
    return config_json(tiny_model(experts=(5, 2)), torch.float32, {})


def test_the_style_of_a_mixture_of_experts_is_the_hubs():
    config = moe_config()
    assert config["architectures"] == ["Qwen3VLMoeForConditionalGeneration"]
    assert (config["model_type"], config["vision_config"]["model_type"]) == ("qwen3_vl_moe", "qwen3_vl_moe")
    assert (
        config["text_config"].items()
        >= {
            "model_type": "qwen3_vl_moe_text",
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "norm_topk_prob": True,
            "router_aux_loss_coef": 0.001,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }.items()
    )


def test_transformers_5_counts_local_experts_and_the_hub_states_no_auxiliary_loss(tmp_path):
    config = moe_config()
    text = config["text_config"]
    text["num_local_experts"] = text.pop("num_experts")
    del text["router_aux_loss_coef"], text["norm_topk_prob"]
    assert read_config(write(tmp_path, config)) == tiny_model(experts=(5, 2))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mlp_only_layers", [1], r"mlp_only_layers is \[1\] instead of \[\]"),
        ("decoder_sparse_step", 2, "decoder_sparse_step is 2 instead of 1"),
        ("norm_topk_prob", False, "norm_topk_prob is false instead of true"),
        ("num_experts", None, "has no text_config.num_experts"),
    ],
)
def test_another_mixture_of_experts_is_refused(tmp_path, name, value, message):
    config = moe_config()
    config["text_config"][name] = value
    with pytest.raises(CheckpointError, match=message):
        read_config(write(tmp_path, config))


def test_generation_stops_at_a_turn_and_at_a_document():
    config = generation_config_json(TOKENS)
    assert config["eos_token_id"] == [2, 1] and config["pad_token_id"] == 1
    assert "eos_token_id" not in generation_config_json({})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["architectures"], ["LlamaForCausalLM"], r"describes architecture \['Llama"),
        (
            ["architectures"],
            ["Qwen3VLMoeForConditionalGeneration"],
            'model_type is "qwen3_vl" instead of "qwen3_vl_moe"',
        ),
        (["text_config", "hidden_act"], "gelu", 'text_config.hidden_act is "gelu" instead of "silu"'),
        (["text_config", "attention_bias"], True, "text_config.attention_bias is true"),
        (["text_config", "rope_scaling", "rope_type"], "yarn", "rope_type is .yarn."),
        (["vision_config", "rope_parameters"], {"rope_theta": 5.0}, "rope_theta is 5.0 instead of 10000.0"),
        (["vision_config", "out_hidden_size"], 41, "out_hidden_size is 41, text_config.hidden_size is 40"),
        (["text_config", "head_dim"], None, "has no text_config.head_dim"),
    ],
)
def test_another_network_is_refused(one_model, tmp_path, path, value, message):
    config = config_json(one_model, torch.float32, {})
    section = config
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    with pytest.raises(CheckpointError, match=message):
        read_config(write(tmp_path, config))


def test_an_unreadable_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: not an object"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_config(tmp_path / "config.json")
