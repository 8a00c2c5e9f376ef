"""A text-only Qwen3 and the tower of a Qwen3-VL become one network; parents that do not fit are refused."""

import json
import re

import pytest
import torch
import transformers
import yaml
from conversion_networks import random_tensors, tiny_model, write_hf
from safetensors.torch import load_file, save_file

from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.running.logits import Sample
from megatron_medx.checkpoint.running.megatron_logits import write_megatron_logits
from megatron_medx.checkpoint.verify import bit_equal
from megatron_medx.errors import CheckpointError

SIZES = {
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 72,
    "vocab_size": 98,
    "max_position_embeddings": 640,
    "rope_parameters": {"rope_type": "default", "rope_theta": 12345.0},
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}


def text_parent(folder, tied=False, moe=False, **save):
    """A random Qwen3, as transformers saves it; returns the stock model."""
    torch.manual_seed(3)
    if moe:
        config = transformers.Qwen3MoeConfig(**SIZES, **EXPERTS, tie_word_embeddings=tied)
        stock = transformers.Qwen3MoeForCausalLM(config)
    else:
        stock = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, tie_word_embeddings=tied))
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter)  # norms too: their default, ones, would hide an exchange
    stock.save_pretrained(folder, **save)
    return stock


@pytest.fixture
def parents(tmp_path):
    """A dense text-only directory and a Qwen3-VL directory that fit."""
    text_parent(tmp_path / "text")
    return tmp_path / "text", write_hf(tmp_path / "vl", tiny_model(), random_tensors(tiny_model()))


def change(folder, **fields):
    """Replace fields of a config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | fields
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def expected_tensors(stock, visual):
    """The child's tensors by hand: the stock decoder's under the longer names, the tower of the other parent."""
    expected = {key: tensor for key, tensor in visual.items() if key.startswith("model.visual.")}
    for key, tensor in stock.state_dict().items():
        if key == "lm_head.weight" and stock.config.tie_word_embeddings:
            continue
        name = re.sub(r"^model\.", "model.language_model.", key)
        # In memory transformers 5 holds experts as linear layers [E, out, in]; the hub's Qwen3-VL has [E, in, out].
        expected[name] = tensor.transpose(1, 2).contiguous() if ".experts." in key else tensor
    return expected


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("sharded", [{}, {"max_shard_size": "20KB"}])
def test_the_child_has_the_tensors_of_both(tmp_path, tied, moe, sharded):
    stock = text_parent(tmp_path / "text", tied, moe, **sharded)
    vl_model = tiny_model(tied=not tied, experts=(0, 0) if moe else (8, 3))  # what the child must not inherit
    visual = random_tensors(vl_model, torch.bfloat16)
    vl = write_hf(tmp_path / "vl", vl_model, visual)
    to_megatron(tmp_path / "text", tmp_path / "root", vision_from=vl)
    to_hf(tmp_path / "root", tmp_path / "child")
    child, expected = load_file(tmp_path / "child" / "model.safetensors"), expected_tensors(stock, visual)
    assert set(child) == set(expected)
    assert all(bit_equal(child[key], tensor) for key, tensor in expected.items())
    written = yaml.safe_load((tmp_path / "root" / "run.yaml").read_text())
    sizes = {"num_layers": 3, "num_heads": 6, "ffn_hidden_size": 72, "vocab_size": 98, "rope_theta": 12345.0}
    sizes |= {"max_positions": 640, "tie_embeddings": tied, "num_experts": 5 * moe, "image_token_id": 90}
    assert {name: written["model"][name] for name in sizes} == sizes
    assert written["provenance"]["command"].endswith(f"text {tmp_path}/root --vision-from {vl}")


def test_the_child_loads_and_computes_the_parents_logits_on_text(tmp_path):
    stock = text_parent(tmp_path / "text").eval()
    to_megatron(
        tmp_path / "text",
        tmp_path / "root",
        vision_from=write_hf(tmp_path / "vl", tiny_model(), random_tensors(tiny_model())),
    )
    to_hf(tmp_path / "root", tmp_path / "child")
    child = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "child", dtype=torch.float32).eval()
    tokens = torch.arange(2, 19)[None]
    with torch.inference_mode():
        torch.testing.assert_close(child(input_ids=tokens).logits, stock(input_ids=tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("moe", [False, True])
def test_the_megatron_network_of_the_child_computes_the_parents_logits_on_text(tmp_path, moe):
    """On text M-RoPE's three positions are equal, which is the parent's rotary embedding."""
    stock = text_parent(tmp_path / "text", tied=moe, moe=moe).eval()
    visual = tiny_model()
    to_megatron(
        tmp_path / "text",
        tmp_path / "root",
        vision_from=write_hf(tmp_path / "vl", visual, random_tensors(visual)),
    )
    tokens = torch.randint(2, 90, (1, 23), generator=torch.Generator().manual_seed(5))
    sample = Sample(
        tokens_1S=tokens,
        labels_1S=tokens,
        loss_weights_1S=torch.ones(1, 23),
        positions_3S=torch.arange(23).expand(3, -1),
        pixels_PC=torch.empty(0, visual.vision.patch_dim),
        grids_I3=torch.empty(0, 3, dtype=torch.int64),
    )
    write_megatron_logits(MegatronCheckpoint(tmp_path / "root"), [sample], tmp_path)
    with torch.inference_mode():
        expected = stock(input_ids=tokens).logits[0]
    found = torch.load(tmp_path / "0.pt")
    assert expected.abs().max() > 10  # the weights are standard normal
    # measured on logits up to 22: dense 3.8e-6, experts 1.05e-5
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_the_hubs_older_config_is_read(parents, tmp_path):
    change(parents[0], rope_parameters=None, rope_theta=777.0, rope_scaling=None)
    to_megatron(parents[0], tmp_path / "root", vision_from=parents[1])
    assert yaml.safe_load((tmp_path / "root" / "run.yaml").read_text())["model"]["rope_theta"] == 777.0


def test_a_tied_output_layer_may_be_stored_once_more_but_not_differ(parents, tmp_path):
    text_parent(parents[0], tied=True)

    def repeat(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_tensors(parents[0], repeat)
    to_megatron(parents[0], tmp_path / "root", vision_from=parents[1])
    change_tensors(parents[0], lambda tensors: tensors["lm_head.weight"][3, 3].add_(1))
    with pytest.raises(
        CheckpointError, match=r"tie_word_embeddings is true, and lm_head\.weight differs from model\.em"
    ):
        to_megatron(parents[0], tmp_path / "again", vision_from=parents[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 48}, "a decoder 48 wide, mergers that end in 40"),
        ({"head_dim": 24}, r"heads of 24, M-RoPE sections \[4, 2, 2\] for heads of 16"),
        ({"num_hidden_layers": 1}, "1 decoder layers, 2 DeepStack mergers"),
        ({"vocab_size": 91}, "a vocabulary of 91 tokens, image and video tokens up to id 91"),
        ({"num_hidden_layers": 2}, r"11 tensors not known: model\.layers\.2\."),
        ({"tie_word_embeddings": True}, r"lm_head\.weight differs"),
        ({"architectures": ["LlamaForCausalLM"]}, r"describes architecture \['LlamaForCausalLM'\]"),
        ({"attention_bias": True, "use_sliding_window": True}, "attention_bias is true instead of false; use_sliding"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, 'rope_type is "yarn" instead of "default"'),
        ({"head_dim": None, "rms_norm_eps": None}, "has no head_dim, rms_norm_eps"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types names sliding_attention"),
        ({"quantization_config": {"quant_method": "awq"}}, r"the weights are quantized \(awq\)"),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused(parents, tmp_path, fields, message):
    change(parents[0], **fields)
    with pytest.raises(CheckpointError, match=message):
        to_megatron(parents[0], tmp_path / "root", vision_from=parents[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text", "vl"]


def test_experts_of_two_dtypes_missing_or_weighed_otherwise_are_refused(parents, tmp_path):
    text, vl = parents
    text_parent(text, moe=True)
    key = "model.layers.1.mlp.experts.3.up_proj.weight"

    def widen(tensors):
        tensors[key] = tensors[key].double().to(torch.bfloat16)

    change_tensors(text, widen)
    with pytest.raises(
        CheckpointError, match=r"experts\.0\.gate_proj\.weight is torch\.float32, .*3\.up_proj.*bfloat16"
    ):
        to_megatron(text, tmp_path / "root", vision_from=vl)
    change_tensors(text, lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointError, match=r"1 tensors missing: model\.layers\.1\.mlp\.experts\.3\.up_proj\.weight"):
        to_megatron(text, tmp_path / "root", vision_from=vl)
    change(text, norm_topk_prob=False)
    with pytest.raises(CheckpointError, match="norm_topk_prob is false instead of true"):
        to_megatron(text, tmp_path / "root", vision_from=vl)
    change(text, norm_topk_prob=None)  # transformers takes false for it
    with pytest.raises(CheckpointError, match="norm_topk_prob is absent instead of true"):
        to_megatron(text, tmp_path / "root", vision_from=vl)


def test_the_tower_must_be_whole(parents, tmp_path):
    change_tensors(parents[1], lambda tensors: tensors.pop("model.visual.merger.norm.bias"))
    with pytest.raises(CheckpointError, match=r"1 tensors missing: model\.visual\.merger\.norm\.bias"):
        to_megatron(parents[0], tmp_path / "root", vision_from=parents[1])


def test_unreadable_parents_are_refused(parents, tmp_path):
    text, vl = parents
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        to_megatron(tmp_path, tmp_path / "root", vision_from=vl)
    index = text / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json cannot be read: KeyError"):
        to_megatron(text, tmp_path / "root", vision_from=vl)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"the shards disagree about lm_head\.weight"):
        to_megatron(text, tmp_path / "root", vision_from=vl)


def test_tokenizers_must_agree(parents, tmp_path):
    for number, folder in enumerate(parents):
        added = [{"id": 90, "content": "<|image_pad|>"}]
        content = {"model": {"vocab": {"a": 0, "b": 1 + number}}, "added_tokens": added}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="give 1 tokens other ids: 'b' is 1 and 2"):
        to_megatron(parents[0], tmp_path / "root", vision_from=parents[1])
    (parents[0] / "tokenizer.json").write_text((parents[1] / "tokenizer.json").read_text())
    to_megatron(parents[0], tmp_path / "root", vision_from=parents[1])
    assert (tmp_path / "root" / "processor" / "tokenizer.json").is_file()


def test_the_output_may_hold_neither_parent(parents, tmp_path):
    vl = parents[1].rename(parents[0] / "vl")
    with pytest.raises(CheckpointError, match="is, or contains, the source"):
        to_megatron(parents[0], vl, vision_from=vl, overwrite=True)
