"""Safetensors shards and their index, written and read; damaged directories refused."""

import json

import pytest
import torch
from conversion_networks import random_tensors
from safetensors.torch import load_file, save_file

from megatron_medx.checkpoint.hugging_face.hf_directory import HfDirectory, write_shard_index
from megatron_medx.checkpoint.hugging_face.safetensors_stream import SafetensorsFile, write_safetensors
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.writing.work_units import hf_shard_name, plan_shards
from megatron_medx.config.processor import copy_known_files, generation_token_ids
from megatron_medx.errors import CheckpointError


def specs_of(tensors):
    return {key: TensorSpec(tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}


def write_shards(folder, tensors, shard_size_bytes):
    """Files and index as a conversion writes them, each of the shards from tensors of its own."""
    shards = plan_shards(specs_of(tensors), shard_size_bytes)
    named = {hf_shard_name(number, len(shards)): shard for number, shard in enumerate(shards, start=1)}
    for name, shard in named.items():
        write_safetensors(folder / name, shard, ((key, tensors[key]) for key in shard))
    write_shard_index(folder, named)


def test_reads_what_the_library_wrote(one_model, write_hf):
    tensors = random_tensors(one_model)
    source = HfDirectory(write_hf(one_model, tensors))
    assert source.model == one_model
    assert source.specs == specs_of(tensors)
    assert all(torch.equal(source.read(key), tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_what_is_written(tmp_path, dtype):
    tensors = {"a": torch.randn(3, 5).to(dtype), "scalar": torch.tensor(2.0).to(dtype), "b": torch.randn(7).to(dtype)}
    write_shards(tmp_path, tensors, 10_000)
    again = load_file(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]
    assert all(torch.equal(again[key], tensor) and again[key].dtype == dtype for key, tensor in tensors.items())


def test_shards_are_cut_at_the_size_and_indexed(one_model, write_hf, tmp_path):
    tensors = random_tensors(one_model)
    folder = write_hf(one_model, tensors)
    (folder / "model.safetensors").unlink()
    write_shards(folder, tensors, 20_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"] == {key: shard.name for shard in shards for key in load_file(shard)}
    source = HfDirectory(folder)
    assert all(torch.equal(source.read(key), tensor) for key, tensor in tensors.items())


def test_a_tensor_larger_than_a_shard_gets_its_own():
    specs = {name: TensorSpec((size,), torch.float32) for name, size in (("a", 1), ("b", 100), ("c", 1), ("d", 1))}
    assert [list(shard) for shard in plan_shards(specs, 12)] == [["a"], ["b"], ["c", "d"]]


def test_a_truncated_file_is_refused(one_model, write_hf):
    path = write_hf(one_model) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        HfDirectory(path.parent)


def test_an_absent_shard_is_refused(one_model, write_hf):
    folder = write_hf(one_model)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors cannot be read"):
        HfDirectory(folder)


def test_an_index_that_does_not_fit_is_refused(one_model, write_hf):
    folder = write_hf(one_model)
    index = {"weight_map": {"lm_head.weight": "model.safetensors", "other": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="and the shards disagree"):
        HfDirectory(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json cannot be read"):
        HfDirectory(folder)


def test_a_directory_without_weights_is_refused(one_model, write_hf):
    folder = write_hf(one_model)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds neither"):
        HfDirectory(folder)


def test_a_tensors_bytes_come_in_blocks_as_long_as_the_file_is_whole(one_model, write_hf):
    tensors = random_tensors(one_model)
    file = SafetensorsFile(write_hf(one_model, tensors) / "model.safetensors")
    key = list(file.specs)[-1]
    blocks = list(file.blocks(key, 100))
    assert {block.nbytes for block in blocks[:-1]} == {100} and 0 < blocks[-1].nbytes <= 100
    assert torch.equal(torch.cat(blocks).view(torch.float32), tensors[key].flatten())
    file.path.write_bytes(file.path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"ends inside {key}"):
        list(file.blocks(key, 100))
    file.path.unlink()
    with pytest.raises(CheckpointError, match="needed: a file that nobody changes"):
        list(file.blocks(key, 100))


def test_quantized_weights_are_refused(one_model, write_hf):
    folder = write_hf(one_model)
    save_file({"lm_head.weight": torch.zeros(2, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight .* has dtype I8"):
        HfDirectory(folder)


def test_processor_files_are_copied_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "notes.txt"):
        (source / name).write_text("{}")
    assert copy_known_files(source, tmp_path / "target") == ["tokenizer.json", "chat_template.jinja"]
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == ["chat_template.jinja", "tokenizer.json"]
    assert copy_known_files(tmp_path / "absent", tmp_path / "never") == [] and not (tmp_path / "never").exists()


def test_special_token_ids_come_from_the_tokenizer(tmp_path):
    assert generation_token_ids(tmp_path) == {}
    config = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    added = [{"id": 7, "content": "<|endoftext|>"}, {"id": 9, "content": "<|im_end|>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    assert generation_token_ids(tmp_path) == {"bos_token_id": 7, "eos_token_id": 9, "pad_token_id": 7}
