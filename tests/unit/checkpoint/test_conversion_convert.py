"""The three public functions: round trips, casts, refusals, comparison."""

import dataclasses
import json
import os

import pytest
import torch
from conversion_networks import random_tensors, tiny_model
from safetensors.torch import load_file, save_file

from megatron_medx.checkpoint import content, convert
from megatron_medx.checkpoint import verify as verify_module
from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.verify import bit_equal, max_abs_diff, verify
from megatron_medx.errors import CheckpointError


@pytest.fixture
def unrun(monkeypatch):
    """Comparisons without running the models; tests/parity runs them."""
    monkeypatch.setattr(verify_module, "LOGITS_LIMIT_BYTES", 0)


def exported(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_bit_equal(model, write_hf, tmp_path, dtype):
    tensors = random_tensors(model, dtype)
    to_megatron(write_hf(model, tensors), tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back")
    back = exported(tmp_path / "back")
    assert set(back) == set(tensors)
    assert all(bit_equal(back[key], tensor) for key, tensor in tensors.items())
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config == {**json.loads((tmp_path / "hf" / "config.json").read_text()), "dtype": str(dtype)[6:]}
    assert (tmp_path / "back" / "generation_config.json").is_file()


def test_a_directory_in_the_layout_of_transformers_5_is_read_and_written_in_the_hubs(write_hf, tmp_path, unrun):
    model = tiny_model(experts=(5, 2))
    tensors = random_tensors(model)
    swapped = {key: part.transpose(1, 2).contiguous() if ".experts." in key else part for key, part in tensors.items()}
    to_megatron(write_hf(model, swapped), tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back")
    back = exported(tmp_path / "back")
    assert all(bit_equal(back[key], tensor) for key, tensor in tensors.items())
    assert verify(tmp_path / "hf", tmp_path / "back")["bit_equal"]


@pytest.mark.parametrize("width", [40, 20])
def test_experts_whose_sides_leave_the_layout_open_are_refused(write_hf, tmp_path, width):
    model = dataclasses.replace(tiny_model(experts=(5, 2)), expert_ffn_hidden_size=width)
    with pytest.raises(CheckpointError, match=f"hidden size 40, expert width {width}"):
        to_megatron(write_hf(model), tmp_path / "root")


def test_signs_of_zero_and_nan_survive(one_model, write_hf, tmp_path):
    tensors = random_tensors(one_model)
    tensors["model.language_model.norm.weight"][:3] = torch.tensor([-0.0, float("nan"), float("inf")])
    to_megatron(write_hf(one_model, tensors), tmp_path / "root")
    to_hf(tmp_path / "root" / "release", tmp_path / "back")
    assert all(bit_equal(exported(tmp_path / "back")[key], tensor) for key, tensor in tensors.items())


def test_processor_files_travel(one_model, write_hf, tmp_path):
    source = write_hf(one_model)
    (source / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<e>", "pad_token": "<p>"}))
    added = [{"id": 3, "content": "<p>"}, {"id": 4, "content": "<e>"}]
    (source / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    to_megatron(source, tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back")
    assert (tmp_path / "back" / "chat_template.jinja").read_bytes() == b"{{ messages }}\r\n"
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text())["eos_token_id"] == [4, 3]
    assert json.loads((tmp_path / "back" / "config.json").read_text())["text_config"]["eos_token_id"] == 4


def test_a_checkpoint_without_tokenizer_is_told(one_model, write_hf, tmp_path, caplog):
    to_megatron(write_hf(one_model), tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back")
    assert "holds no tokenizer" in caplog.text


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_dtype_casts_every_tensor(one_model, write_hf, tmp_path, name, dtype):
    tensors = random_tensors(one_model)
    to_megatron(write_hf(one_model, tensors), tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back", dtype=name)
    assert all(bit_equal(exported(tmp_path / "back")[key], tensor.to(dtype)) for key, tensor in tensors.items())
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == str(dtype)[6:]
    with pytest.raises(CheckpointError, match="dtype 'fp8'"):
        to_hf(tmp_path / "root", tmp_path / "other", dtype="fp8")


def test_shards_are_written_and_read(one_model, write_hf, tmp_path, unrun):
    to_megatron(write_hf(one_model), tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back", shard_size_bytes=20_000)
    assert (tmp_path / "back" / "model.safetensors.index.json").is_file()
    assert verify(tmp_path / "hf", tmp_path / "back")["bit_equal"]


def test_mixed_dtypes_are_kept_but_not_joined(one_model, write_hf, tmp_path):
    tensors = random_tensors(one_model, torch.bfloat16)
    tensors["model.visual.pos_embed.weight"] = tensors["model.visual.pos_embed.weight"].float()
    to_megatron(write_hf(one_model, tensors), tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "back")
    assert all(bit_equal(exported(tmp_path / "back")[key], tensor) for key, tensor in tensors.items())
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "float32"
    key = "model.language_model.layers.0.self_attn.k_proj.weight"
    mixed = write_hf(one_model, {**tensors, key: tensors[key].float()}, "mixed")
    with pytest.raises(CheckpointError, match="one dtype for the tensors that make up"):
        to_megatron(mixed, tmp_path / "other")


def test_a_missing_and_an_extra_tensor_stop_before_anything_is_written(one_model, write_hf, tmp_path):
    tensors = random_tensors(one_model)
    tensors["model.visual.merger.extra.weight"] = tensors.pop("model.visual.merger.norm.weight")
    with pytest.raises(CheckpointError, match=r"missing: model\.visual\.merger\.norm\.weight") as caught:
        to_megatron(write_hf(one_model, tensors), tmp_path / "root")
    assert "not known: model.visual.merger.extra.weight" in caught.value.found
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_checkpoint_of_other_sizes_is_refused(one_model, write_hf, tmp_path):
    to_megatron(write_hf(one_model), tmp_path / "root")
    text = (tmp_path / "root" / "run.yaml").read_text().replace("num_layers: 2", "num_layers: 4")
    (tmp_path / "root" / "run.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"16 tensors missing: decoder\.layers\.2"):
        to_hf(tmp_path / "root", tmp_path / "back")


def test_a_failure_while_writing_leaves_nothing(one_model, write_hf, tmp_path, monkeypatch):
    source = write_hf(one_model)
    to_megatron(source, tmp_path / "root")
    before = sorted(os.listdir(tmp_path))

    def read_some(weights, one):
        if "final_layernorm" in one.megatron_key:
            raise KeyboardInterrupt
        return original(weights, one)

    original = convert.read_hf_group
    monkeypatch.setattr(convert, "read_hf_group", read_some)
    with pytest.raises(KeyboardInterrupt):
        to_hf(tmp_path / "root", tmp_path / "back")
    with pytest.raises(KeyboardInterrupt):
        to_megatron(source, tmp_path / "again")
    assert sorted(os.listdir(tmp_path)) == before


def test_existing_output_and_small_disk_are_refused(one_model, write_hf, tmp_path, monkeypatch):
    source = write_hf(one_model)
    to_megatron(source, tmp_path / "root")
    with pytest.raises(CheckpointError, match="root exists"):
        to_megatron(source, tmp_path / "root")
    to_megatron(source, tmp_path / "root", overwrite=True)
    monkeypatch.setattr(content, "OVERHEAD_BYTES", 10**18)
    with pytest.raises(CheckpointError, match="GB free"):
        to_hf(tmp_path / "root", tmp_path / "back")


def test_verify_names_what_differs_most(one_model, write_hf, tmp_path, unrun):
    tensors = random_tensors(one_model)
    to_megatron(write_hf(one_model, tensors), tmp_path / "root")
    for number in range(7):
        tensors[f"model.visual.blocks.{number % 3}.attn.qkv.weight"][number, 0] += number
    tensors["lm_head.weight"][5, 5] = float("nan")
    tensors["model.language_model.layers.1.mlp.up_proj.weight"][0, 0] -= 2**-7
    changed = write_hf(one_model, tensors, "changed")
    report = verify(changed, tmp_path / "root")
    assert not report["bit_equal"] and report["num_tensors"] == len(tensors) and report["num_different"] == 5
    assert report["worst"][0]["name"] == "lm_head.weight" and report["worst"][0]["max_abs_diff"] is None
    assert report["worst"][1]["max_abs_diff"] == pytest.approx(6, abs=1e-5)
    assert report["worst"][1]["megatron_name"] == "vision.encoder.layers.0.self_attention.linear_qkv.weight"
    assert report["worst"][4]["name"] == "model.language_model.layers.1.mlp.up_proj.weight"
    assert report["logits_max_abs_diff"] is None and "it is not run" in report["logits_note"]


def test_differences_are_numbers_that_json_has():
    nan, inf = float("nan"), float("inf")
    assert max_abs_diff(torch.tensor([1.0, nan, inf]), torch.tensor([1.5, nan, inf])) == 0.5
    assert max_abs_diff(torch.tensor([1.0, nan]), torch.tensor([1.0, 2.0])) is None
    assert max_abs_diff(torch.tensor([inf]), torch.tensor([-inf])) is None


def test_verify_compares_dtypes_too(one_model, write_hf, tmp_path, unrun):
    tensors = random_tensors(one_model, torch.bfloat16)
    first = write_hf(one_model, tensors)
    second = write_hf(one_model, {key: tensor.float() for key, tensor in tensors.items()}, "fp32")
    report = verify(first, second)
    assert report["num_different"] == len(tensors) and report["worst"][0]["max_abs_diff"] == 0
    assert report["worst"][0]["dtypes"] == ["bfloat16", "float32"]


def test_verify_refuses_other_networks_and_other_folders(one_model, write_hf, tmp_path, unrun):
    other = dataclasses.replace(one_model, rope_theta=1e4)
    first, second = write_hf(one_model), write_hf(other, name="other")
    with pytest.raises(CheckpointError, match=r"different networks: rope_theta 5000000\.0 and 10000\.0"):
        verify(first, second)
    with pytest.raises(CheckpointError, match=r"holds neither config\.json nor latest_checkpointed_iteration\.txt"):
        verify(first, tmp_path)
    save_file({}, second / "model.safetensors")
    with pytest.raises(CheckpointError, match="tensors missing"):
        verify(second, second)
