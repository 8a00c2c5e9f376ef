"""Stock transformers models through files: saved, converted, exported, loaded again, and run.

The networks come from transformers itself, with every parameter perturbed; `AutoModelForImageTextToText` reads the
export without remote code. Checkpoints that Megatron wrote on several ranks: tests/unit/checkpoint.
"""

import pytest
import torch
import transformers

from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.hf_config import read_config
from megatron_medx.checkpoint.hf_directory import HfDirectory
from megatron_medx.checkpoint.logits import fixed_input
from megatron_medx.checkpoint.rules import bindings, hf_shapes
from megatron_medx.checkpoint.verify import verify

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
            "hidden_size": 40,
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
            "num_heads": 3,
            "intermediate_size": 36,
            "deepstack_visual_indexes": shape["deepstack"],
            "out_hidden_size": 40,
            "num_position_embeddings": 16,
        },
        tie_word_embeddings=shape["tied"],
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    torch.manual_seed(0)
    model = of_network(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(params=list(SHAPES.values()), ids=list(SHAPES))
def stock(request, tmp_path):
    """A stock model and the directory that transformers saved it to."""
    model = stock_model(request.param)
    model.save_pretrained(tmp_path / "hf")
    return model, tmp_path / "hf"


@pytest.fixture(params=["4 heads in 2 groups, DeepStack 0 2", "5 experts, 2 a token"])
def one_stock(request, tmp_path):
    """One dense and one other, for tests that start the Megatron network in a process of its own (8 s)."""
    model = stock_model(SHAPES[request.param])
    model.save_pretrained(tmp_path / "hf")
    return model, tmp_path / "hf"


def test_the_rules_name_what_transformers_saves(stock):
    _, folder = stock
    stored = HfDirectory(folder)
    assert hf_shapes(bindings(stored.model)) == {key: spec.shape for key, spec in stored.specs.items()}


def test_the_export_loads_in_stock_transformers_with_equal_logits(stock, tmp_path):
    model, folder = stock
    to_megatron(folder, tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back")
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "back").eval()
    assert type(again) is type(model)
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in again.state_dict().items())
    inputs = fixed_input(read_config(tmp_path / "back" / "config.json"))
    del inputs["positions"]
    with torch.inference_mode():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)


def test_verify_runs_both_networks(one_stock, tmp_path):
    _, folder = one_stock
    to_megatron(folder, tmp_path / "root")
    report = verify(folder, tmp_path / "root")
    assert report["bit_equal"] and report["worst"] == []
    # transformers on one side, the Megatron network on the other: 4.2e-6 at most over all SHAPES on 2026-11-22
    assert 0 < report["logits_max_abs_diff"] < 1e-5


def test_verify_sees_a_changed_weight_in_the_logits(one_stock, tmp_path):
    model, folder = one_stock
    to_megatron(folder, tmp_path / "root")
    with torch.no_grad():
        model.model.visual.merger.linear_fc2.bias[0] += 1
    model.save_pretrained(tmp_path / "changed")
    report = verify(tmp_path / "changed", tmp_path / "root")
    assert not report["bit_equal"] and report["logits_max_abs_diff"] > 1e-4
    assert [entry["name"] for entry in report["worst"]] == ["model.visual.merger.linear_fc2.bias"]


def test_transformers_reads_the_config_as_it_was(stock, tmp_path):
    model, folder = stock
    to_megatron(folder, tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back")
    again = transformers.AutoConfig.from_pretrained(tmp_path / "back")
    for section in ("text_config", "vision_config"):
        ours, theirs = getattr(again, section).to_dict(), getattr(model.config, section).to_dict()
        ignored = {"_name_or_path", "dtype", "tie_word_embeddings", "norm_topk_prob"}  # the last is for servers
        assert {k: v for k, v in ours.items() if k not in ignored} == {
            k: v for k, v in theirs.items() if k not in ignored
        }
    assert again.tie_word_embeddings == model.config.tie_word_embeddings
