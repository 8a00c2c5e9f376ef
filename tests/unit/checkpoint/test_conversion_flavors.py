"""Directories as transformers 4.57.3 and 5.23.0 write them: told apart, and read into the same network.

`flavors/` holds what `save_pretrained` of either version wrote for the tiny networks below: config.json, and the name
and stored shape of every tensor. The values are made here.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conversion_networks import random_tensors, tiny_model, write_hf
from safetensors.torch import load_file, save_file

from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.hugging_face.hf_config import config_json
from megatron_medx.checkpoint.hugging_face.hf_directory import HfDirectory
from megatron_medx.checkpoint.verify import bit_equal
from megatron_medx.checkpoint.weights import open_weights
from megatron_medx.errors import CheckpointError

FLAVORS = Path(__file__).parent / "flavors"
VERSIONS = ("4.57.3", "5.23.0")
WHOLE = {"qwen3_vl_tied": tiny_model(tied=True), "qwen3_vl_moe": tiny_model(experts=(5, 2))}
TEXT = {"qwen3_tied": tiny_model(tied=True), "qwen3_moe": tiny_model(experts=(5, 2))}
OUTPUT, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


def flavor(name, version):
    content = json.loads((FLAVORS / f"{name}_{version}.json").read_text())
    assert content["config"]["transformers_version"] == version
    return content["config"], {key: tuple(shape) for key, shape in content["tensors"].items()}


def write_flavor(folder, name, version, tensors):
    """A directory with a version's own config.json and tensor names, filled with `tensors` of the hub's layout."""
    config, shapes = flavor(name, version)
    stored = {}
    for key, shape in shapes.items():
        value = stored_value(key, tensors)
        swapped = value.dim() == 3 and tuple(value.shape) != shape
        stored[key] = (value.transpose(1, 2) if swapped else value).contiguous().clone()
        assert tuple(stored[key].shape) == shape
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def stored_value(key, tensors):
    """What a version stores under a key, from the tensors of a Qwen3-VL in the hub's layout."""
    key = re.sub(r"^model\.(?!visual\.|language_model\.)", "model.language_model.", key)
    if key in tensors:
        return tensors[key]
    experts, number, name = key.removesuffix("_proj.weight").rsplit(".", 2)
    if name == "down":
        return tensors[f"{experts}.down_proj"][int(number)].T
    return tensors[f"{experts}.gate_up_proj"][int(number)].chunk(2, dim=1)[name == "up"].T


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", WHOLE)
def test_a_qwen3_vl_of_either_version_is_the_same_network(tmp_path, name, version):
    model, tensors = WHOLE[name], random_tensors(WHOLE[name], torch.bfloat16)
    source = HfDirectory(write_flavor(tmp_path / "hf", name, version, tensors))
    assert source.model == model and set(source.specs) == set(tensors)
    to_megatron(tmp_path / "hf", tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert set(back) == set(tensors) and all(bit_equal(back[key], tensor) for key, tensor in tensors.items())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config_json(model, torch.bfloat16, {})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", TEXT)
def test_a_text_only_parent_of_either_version_is_the_same_decoder(tmp_path, name, version):
    tensors = random_tensors(TEXT[name], torch.bfloat16)
    text = write_flavor(tmp_path / "text", name, version, tensors)
    tower = write_hf(tmp_path / "vl", tiny_model(), tensors | random_tensors(tiny_model(), torch.bfloat16, seed=1))
    to_megatron(text, tmp_path / "root", vision_from=tower)
    source = open_weights(tmp_path / "root")
    assert source.model == replace(TEXT[name], rope_theta=1e6)
    to_hf(tmp_path / "root", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    decoder = {key: tensor for key, tensor in tensors.items() if "visual" not in key}
    assert set(decoder) == {key for key in back if "visual" not in key}
    assert all(bit_equal(back[key], tensor) for key, tensor in decoder.items())


def test_the_flavors_differ_where_they_are_known_to():
    """What the reading is for; a new version's files that no longer differ would make these tests empty."""
    old, new = ({name: flavor(name, version) for name in (*WHOLE, *TEXT)} for version in VERSIONS)
    stacked = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert (old["qwen3_vl_moe"][1][stacked], new["qwen3_vl_moe"][1][stacked]) == ((5, 40, 24), (5, 24, 40))
    ties = [flavors["qwen3_vl_tied"][0]["text_config"].get("tie_word_embeddings") for flavors in (old, new)]
    assert ties == [True, None] and all(OUTPUT not in flavors["qwen3_vl_tied"][1] for flavors in (old, new))
    texts = [flavors["qwen3_vl_moe"][0]["text_config"] for flavors in (old, new)]
    assert ["num_experts" in text for text in texts] == [True, False]
    assert ["rope_scaling" in text for text in texts] == [True, False]
    assert texts[1]["tie_word_embeddings"] is True  # a default; the value at the top is what counts
    assert all("model.layers.1.mlp.experts.4.up_proj.weight" in one["qwen3_moe"][1] for one in (old, new))


@pytest.mark.parametrize("layout", ["as transformers 5 holds them", "as the hub has them"])
def test_a_text_only_parent_with_stacked_experts_is_read(tmp_path, layout):
    tensors = random_tensors(TEXT["qwen3_moe"])
    text = write_flavor(tmp_path / "text", "qwen3_moe", "5.23.0", tensors)
    stored = {key: value for key, value in load_file(text / "model.safetensors").items() if ".experts." not in key}
    for key, value in tensors.items():
        if ".experts." in key:
            value = value if "hub" in layout else value.transpose(1, 2).contiguous()
            stored[key.replace("language_model.", "")] = value
    save_file(stored, text / "model.safetensors")
    to_megatron(
        text, tmp_path / "root", vision_from=write_hf(tmp_path / "vl", tiny_model(), random_tensors(tiny_model()))
    )
    to_hf(tmp_path / "root", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(bit_equal(back[key], value) for key, value in tensors.items() if "visual" not in key)


def edit(folder, change_tensors=None, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    if change_tensors:
        tensors = load_file(folder / "model.safetensors")
        change_tensors(tensors)
        save_file(tensors, folder / "model.safetensors")


def test_an_output_layer_that_repeats_its_embedding_is_left_out_and_one_that_differs_refused(tmp_path, monkeypatch):
    """A state dict as a trainer saves it, and what transformers 4.57.3 writes when the top alone ties: two layers."""
    monkeypatch.setattr(
        "megatron_medx.checkpoint.hugging_face.hf_files._COMPARED_BYTES", 1_000
    )  # 7,680 bytes: several blocks
    hf = write_flavor(tmp_path / "hf", "qwen3_vl_tied", "5.23.0", random_tensors(tiny_model(tied=True), torch.bfloat16))
    edit(hf, lambda tensors: tensors.update({OUTPUT: tensors[EMBEDDING].clone()}))
    assert OUTPUT not in HfDirectory(hf).specs
    to_megatron(hf, tmp_path / "root")
    assert "output_layer.weight" not in open_weights(tmp_path / "root").specs

    def change_last(tensors):
        tensors[OUTPUT][-1, -1] += 1

    edit(hf, change_last)
    with pytest.raises(
        CheckpointError, match=r"tie_word_embeddings is true, and lm_head\.weight differs from model\.lan"
    ):
        to_megatron(hf, tmp_path / "other")
    edit(hf, lambda tensors: tensors.update({OUTPUT: tensors[EMBEDDING].float()}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        to_megatron(hf, tmp_path / "other")
    edit(hf, tie_word_embeddings=False)
    assert OUTPUT in HfDirectory(hf).specs


def test_a_tie_in_the_text_section_alone_counts_where_no_output_layer_is_stored(tmp_path):
    """transformers 4.57.3 ties by it and stores one matrix; 5.23.0 ignores it, and states it for untied experts."""
    tied = write_flavor(tmp_path / "tied", "qwen3_vl_tied", "4.57.3", random_tensors(tiny_model(tied=True)))
    edit(tied, tie_word_embeddings=False)
    assert json.loads((tied / "config.json").read_text())["text_config"]["tie_word_embeddings"] is True
    assert HfDirectory(tied).model == tiny_model(tied=True)
    untied = write_flavor(tmp_path / "untied", "qwen3_vl_moe", "5.23.0", random_tensors(tiny_model(experts=(5, 2))))
    assert json.loads((untied / "config.json").read_text())["text_config"]["tie_word_embeddings"] is True
    assert HfDirectory(untied).model == tiny_model(experts=(5, 2))


def test_an_untied_network_without_output_layer_is_refused(tmp_path):
    hf = write_flavor(tmp_path / "hf", "qwen3_vl_tied", "5.23.0", random_tensors(tiny_model(tied=True)))
    edit(hf, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"1 tensors missing: lm_head\.weight(.|\n)*tie_word_embeddings"):
        to_megatron(hf, tmp_path / "root")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text_tied", "one of the Qwen3-VL.*--vision-from HF"),
        ("adapter", "holds an adapter.*Qwen/Qwen3-VL-8B-Instruct.*merge_and_unload"),
        ("fp8", r"quantized \(fp8\).*without -FP8"),
        ("bin", r"pytorch_model-00001-of-00002\.bin and no safetensors.*save_pretrained"),
    ],
)
def test_what_is_not_whole_weights_is_refused_with_the_way_out(tmp_path, name, message):
    hf = write_flavor(tmp_path / "hf", "qwen3_vl_moe", "5.23.0", random_tensors(tiny_model(experts=(5, 2))))
    if name == "text_tied":
        (hf / "config.json").write_text(json.dumps(flavor("qwen3_tied", "5.23.0")[0]))
    if name == "adapter":
        (hf / "config.json").unlink()
        (hf / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-VL-8B-Instruct"}')
    if name == "fp8":
        edit(hf, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    if name == "bin":
        (hf / "model.safetensors").rename(hf / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        to_megatron(hf, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_an_adapter_beside_whole_weights_leaves_open_which_is_meant(tmp_path):
    hf = write_flavor(tmp_path / "hf", "qwen3_vl_tied", "5.23.0", random_tensors(tiny_model(tied=True)))
    (hf / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"a base that it does not name(.|\n)*remove adapter_config\.json"):
        HfDirectory(hf)


def test_quantization_stated_for_the_decoder_alone_is_refused(tmp_path):
    hf = write_flavor(tmp_path / "hf", "qwen3_vl_tied", "5.23.0", random_tensors(tiny_model(tied=True)))
    config = json.loads((hf / "config.json").read_text())
    edit(hf, text_config=config["text_config"] | {"quantization_config": {"quant_method": "awq"}})
    with pytest.raises(CheckpointError, match=r"the weights are quantized \(awq\)"):
        HfDirectory(hf)
