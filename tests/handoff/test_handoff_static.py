"""What vLLM, SGLang, verl and others expect of a directory: our exports have it all, spoiled ones are named."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron_medx.checkpoint.convert import to_hf
from megatron_medx.checkpoint.hugging_face.hf_config import config_json
from megatron_medx.checkpoint.layout.rules import bindings, hf_shapes
from megatron_medx.checkpoint.readers.check import check
from megatron_medx.checkpoint.readers.surroundings import FILES, RELATIONS, TOKENS
from megatron_medx.checkpoint.readers.tables import KEYS, READERS, TENSORS
from megatron_medx.cli import main
from megatron_medx.errors import CheckpointError
from megatron_medx.recipes.sizes import qwen3_vl_2b, qwen3_vl_4b, qwen3_vl_8b, qwen3_vl_30b_a3b

LAYER = "model.language_model.layers"
DOWN = "mlp.down_proj.weight"


@pytest.fixture
def spoil(export_dir, tmp_path):
    """Function (config=None, weights=None, source=dense export) -> a copy, its config.json or weights changed."""

    def copy(config=None, weights=None, source=export_dir) -> Path:
        folder = tmp_path / "spoiled"
        shutil.copytree(source, folder)
        if config:
            stored = json.loads((folder / "config.json").read_text())
            config(stored)
            (folder / "config.json").write_text(json.dumps(stored))
        if weights:
            tensors = load_file(folder / "model.safetensors")
            weights(tensors)
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
        return folder

    return copy


@pytest.mark.parametrize("name", ["export_dir", "moe_export_dir", "tied_export_dir"])
def test_our_exports_have_all_that_is_expected(name, request):
    assert check(request.getfixturevalue(name)) == ()


def test_shards_with_an_index_are_read(export_dir, tmp_path):
    to_hf(export_dir.parent / "megatron", tmp_path / "sharded", shard_size_bytes=300_000)
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    assert check(tmp_path / "sharded") == ()


def test_our_config_of_the_4b_is_the_hubs():
    """qwen3_vl_4b_config.json: the values of the published file, as a public wrapper for DiffSynth quotes them."""
    hub = json.loads((Path(__file__).parent / "qwen3_vl_4b_config.json").read_text())
    ours = config_json(qwen3_vl_4b(), torch.bfloat16, {"bos_token_id": 151643, "eos_token_id": 151645})
    assert (hub.pop("transformers_version"), ours.pop("transformers_version")) == ("4.57.0.dev0", "4.57.0")
    assert ours.pop("dtype") == "bfloat16"  # for transformers 5, beside text_config.dtype
    assert ours == hub


@pytest.mark.parametrize("size", [qwen3_vl_2b, qwen3_vl_8b, qwen3_vl_30b_a3b])
def test_the_published_sizes_have_it_too(size, processor_dir, tmp_path):
    """Tied and small tower, untied and large tower, experts; real shapes, and a file with holes in place of values."""
    folder = tmp_path / "hf"
    shutil.copytree(processor_dir, folder)
    added = json.loads((folder / "tokenizer.json").read_text())
    for token in added["added_tokens"]:
        token["id"] += 151643 - 300  # the ids of Qwen's own tokenizer
    (folder / "tokenizer.json").write_text(json.dumps(added))
    model = size()
    (folder / "config.json").write_text(json.dumps(config_json(model, torch.bfloat16, {})))
    header, end = {}, 0
    for key, shape in hf_shapes(bindings(model)).items():
        num_bytes = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + num_bytes]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    assert check(folder) == ()


def test_a_dense_network_that_transformers_5_saved_misses_nothing_today(export_dir, tmp_path):
    """Its names and shapes are transformers' own, so the tables are held against those, too."""
    transformers.AutoModelForImageTextToText.from_pretrained(export_dir).save_pretrained(tmp_path / "saved")
    transformers.AutoProcessor.from_pretrained(export_dir).save_pretrained(tmp_path / "saved")
    assert [check(tmp_path / "saved", reader) for reader in ("vllm", "sglang", "verl")] == [()] * 3
    assert {reader for miss in check(tmp_path / "saved") for reader in miss.readers} == {"transformers4", "llamacpp"}


def test_a_moe_that_transformers_5_saved_is_refused_by_the_servers_alone(moe_export_dir, tmp_path):
    model = transformers.AutoModelForImageTextToText.from_pretrained(moe_export_dir)
    model.save_pretrained(tmp_path / "saved")
    for file in moe_export_dir.iterdir():
        if not (tmp_path / "saved" / file.name).exists():
            shutil.copy(file, tmp_path / "saved")
    found = {miss.found: miss for miss in check(tmp_path / "saved")}
    for name, shape in (("gate_up_proj", "[6, 48, 40]"), ("down_proj", "[6, 40, 24]")):
        miss = found.pop(f"{LAYER}.{{0..2}}.mlp.experts.{name} {shape}")
        assert set(miss.readers) == {"vllm", "sglang", "transformers4", "llamacpp"}
        assert "transformers 5 wrote the experts turned around" in miss.do
    assert {"config.json without text_config.rope_theta", "config.json without text_config.num_experts"} <= set(found)
    assert check(tmp_path / "saved", "verl") == ()


def test_rope_parameters_alone_are_not_read_by_transformers_4(spoil):
    def transformers_5(config):
        text = config["text_config"]
        text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}

    folder = spoil(transformers_5)
    misses = check(folder)
    assert [miss.found for miss in misses] == [
        "config.json without text_config.rope_theta",
        "config.json without text_config.rope_scaling.mrope_section",
        "config.json without text_config.rope_scaling.rope_type",
    ]
    assert all(set(miss.readers) == {"transformers4"} for miss in misses)
    assert "takes 5e6 without it" in misses[0].readers["transformers4"]
    assert "transformers 5 wrote it as text_config.rope_parameters.rope_theta" in misses[0].do
    assert check(folder, "vllm") == check(folder, "sglang") == check(folder, "verl") == ()


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("preprocessor_config.json", set(READERS)),
        ("video_preprocessor_config.json", {"transformers4"}),
        ("chat_template.jinja", {"vllm", "sglang", "verl"}),
        ("tokenizer.json", {"vllm", "sglang", "verl"}),
        ("tokenizer_config.json", {"vllm", "sglang", "verl"}),
        ("generation_config.json", {"vllm", "sglang", "verl"}),
    ],
)
def test_a_missing_file(spoil, name, readers):
    folder = spoil()
    (folder / name).unlink()
    misses = check(folder)
    assert misses and all(name in miss.found for miss in misses)
    assert {reader for miss in misses for reader in miss.readers} == readers


def test_a_processor_as_transformers_5_writes_it_is_enough_for_todays_readers(spoil):
    folder = spoil()
    (folder / "preprocessor_config.json").rename(folder / "processor_config.json")
    assert [check(folder, reader) == () for reader in ("vllm", "sglang", "verl")] == [True] * 3
    missing = f"no preprocessor_config.json in {folder}"
    assert [(miss.found, set(miss.readers)) for miss in check(folder)] == [
        (missing, {"transformers4"}),
        (missing, {"llamacpp"}),
    ]


def test_a_renamed_tensor_is_missing_and_too_many(spoil):
    folder = spoil(weights=lambda tensors: tensors.update({f"{LAYER}.1.mlp.w2": tensors.pop(f"{LAYER}.1.{DOWN}")}))
    missing, extra = check(folder)
    assert missing.found == f"weights without {LAYER}.1.{DOWN}"
    assert missing.readers["vllm"].startswith("stops")
    assert missing.readers["sglang"].startswith("starts with whatever the memory held")
    assert extra.found == f"weights with {LAYER}.1.mlp.w2"
    assert set(extra.readers) == {"vllm", "sglang"}


def test_a_tensor_that_every_layer_lacks_is_one_miss(spoil):
    (miss,) = check(
        spoil(weights=lambda tensors: [tensors.pop(f"{LAYER}.{layer}.self_attn.q_norm.weight") for layer in range(3)])
    )
    assert miss.found == f"weights without {LAYER}.{{0..2}}.self_attn.q_norm.weight"


def test_a_wrong_vocabulary_size(spoil):
    misses = check(spoil(lambda config: config["text_config"].update(vocab_size=320)))
    assert [miss.found for miss in misses] == [
        "text_config.vocab_size is 320, tokenizer.json goes up to id 325",
        "model.language_model.embed_tokens.weight [326, 40]",
        "lm_head.weight [326, 40]",
    ]
    assert misses[1].needed == "[320, 40] [V H]"


def test_a_padded_vocabulary(spoil):
    def pad(tensors):
        for key in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            tensors[key] = torch.cat([tensors[key], torch.zeros(58, 40)])

    first, second = check(spoil(weights=pad))
    assert (first.found, first.needed) == ("model.language_model.embed_tokens.weight [384, 40]", "[326, 40] [V H]")
    assert second.found == "lm_head.weight [384, 40]"
    assert "export without padding" in first.do


def test_a_tied_head_that_is_written_twice(spoil, tied_export_dir):
    def twice(tensors):
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()

    (miss,) = check(spoil(weights=twice, source=tied_export_dir))
    assert miss.found == "weights with lm_head.weight"
    assert "tie_word_embeddings is true" in miss.needed
    assert "takes the one that it meets last" in miss.readers["sglang"]


def test_an_untied_head_that_is_missing(spoil):
    (miss,) = check(spoil(weights=lambda tensors: tensors.pop("lm_head.weight")))
    assert miss.found == "weights without lm_head.weight"


@pytest.mark.parametrize(
    ("section", "values", "found", "readers"),
    [
        ("", {"architectures": ["Qwen2VLForConditionalGeneration"]}, "architectures is", {"vllm", "sglang", "verl"}),
        ("", {"image_token_id": 7}, "image_token_id is 7, tokenizer.json has <|image_pad|> as 312", None),
        ("text_config", {"head_dim": None}, "config.json without text_config.head_dim", None),
        ("text_config", {"hidden_size": "40"}, 'text_config.hidden_size is "40"', None),
        ("text_config", {"rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2]}}, "mrope_interleaved",
         {"vllm", "sglang"}),
        ("vision_config", {"out_hidden_size": 48}, "out_hidden_size is 48, text_config.hidden_size is 40", None),
        ("vision_config", {"num_position_embeddings": 60}, "num_position_embeddings is 60", None),
        ("vision_config", {"deepstack_visual_indexes": [3, 1, 0]}, "deepstack_visual_indexes is [3, 1, 0]", None),
        ("vision_config", {"deepstack_visual_indexes": 3}, "deepstack_visual_indexes is 3", None),
        ("text_config", {"rope_scaling": {"mrope_section": [4, 2, 3]}}, "mrope_section is [4, 2, 3]",
         {"vllm", "sglang"}),
        ("vision_config", {"deepstack_visual_indexes": [0, 1, 2, 3]}, "text_config.num_hidden_layers is 3", {"verl"}),
        ("vision_config", {"patch_size": 14}, "preprocessor_config.json:patch_size is 16", {"vllm"}),
    ],
)  # fmt: skip
def test_a_config_that_contradicts(spoil, section, values, found, readers):
    def change(config):
        (config[section] if section else config).update(values)

    hits = [miss for miss in check(spoil(change)) if found in miss.found]
    assert hits
    assert readers is None or set(hits[0].readers) == readers


def test_sglang_takes_mixtures_of_experts_with_three_deepstack_levels_alone(spoil, moe_export_dir):
    def two_levels(config):
        config["vision_config"]["deepstack_visual_indexes"] = [1, 2]

    misses = check(spoil(two_levels, source=moe_export_dir), "sglang")
    assert misses[0].needed.startswith("3 DeepStack levels, or none")
    assert misses[0].readers == {"sglang": "qwen3_vl_moe.py:63"}


def test_experts_whose_sides_tell_no_layout(spoil, moe_export_dir):
    def as_wide(config):
        config["text_config"]["moe_intermediate_size"] = 40

    misses = check(spoil(as_wide, source=moe_export_dir), "verl")
    assert misses[0].needed.startswith("an expert width that is neither the hidden size nor half of it")


def test_every_line_of_the_tables_names_a_reader_and_a_place():
    lines = (*KEYS, *RELATIONS, *FILES, *TOKENS, *TENSORS)
    assert len(lines) > 70
    for line in lines:
        assert line.sources and set(line.sources) <= set(READERS)
        assert all(place.rpartition(":")[2].isdigit() for place in line.sources.values()), line


def test_the_command_names_each_miss_and_ends_with_1(spoil, capsys):
    folder = spoil()
    (folder / "video_preprocessor_config.json").unlink()
    assert main(["convert", "check", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("found:  no video_preprocessor_config.json in ")
    assert lines[-1].startswith("1 misses for vLLM 0.32.0, SGLang 0.5.23")
    assert main(["convert", "check", str(folder), "--for", "vllm"]) == 0
    assert capsys.readouterr().out == "nothing is missing for vLLM 0.32.0\n"


def test_an_unknown_reader(export_dir):
    with pytest.raises(
        CheckpointError, match=r"reader 'tgi'(?s:.)*one of vllm, sglang, verl, transformers4, llamacpp, all"
    ):
        check(export_dir, "tgi")


def test_a_tokenizer_that_is_no_json(spoil):
    folder = spoil()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        check(folder)
