"""The hash table: the same file from every format, one line changed by one bit; what `verify` names first."""

import hashlib

import pytest
import torch
from conversion_networks import random_tensors, tiny_model, write_hf
from safetensors.torch import save_file

from megatron_medx.checkpoint import verify as verify_module
from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.verify import hash_table, verify
from megatron_medx.errors import CheckpointError

UP_1 = "model.language_model.layers.1.mlp.up_proj.weight"
QKV_2 = "model.visual.blocks.2.attn.qkv.weight"


def _table_of(tensors):
    """The hash table by its definition."""
    lines = []
    for key in sorted(tensors):
        tensor = tensors[key]
        digest = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        shape = "x".join(str(size) for size in tensor.shape)
        lines.append(f"{digest}  {str(tensor.dtype)[6:]}  {shape}  {key}\n")
    return "".join(lines)


def test_both_formats_have_one_hash_table(model, write_hf, tmp_path, monkeypatch):
    monkeypatch.setattr(verify_module, "LOGITS_LIMIT_BYTES", 0)
    tensors = random_tensors(model, torch.bfloat16)
    write_hf(model, tensors)
    to_megatron(tmp_path / "hf", tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "shards", shard_size_bytes=9_000)
    for name in ("hf", "root", "shards"):
        assert hash_table(tmp_path / name, tmp_path / f"{name}.txt") == len(tensors)
        assert (tmp_path / f"{name}.txt").read_text() == _table_of(tensors)
    assert verify(tmp_path / "root", tmp_path / "hf", hashes=tmp_path / "both.txt")["bit_equal"]
    assert (tmp_path / "both.txt").read_text() == _table_of(tensors)


def test_a_changed_bit_changes_one_line_and_is_named_in_both_vocabularies(one_model, write_hf, tmp_path, monkeypatch):
    monkeypatch.setattr(verify_module, "LOGITS_LIMIT_BYTES", 0)
    tensors = random_tensors(one_model)
    to_megatron(write_hf(one_model, tensors), tmp_path / "root")
    tensors[UP_1][0, 0], tensors[QKV_2][1, 1] = tensors[UP_1][0, 0].nextafter(torch.tensor(float("inf"))), 1e6
    changed = write_hf(one_model, tensors, "changed")
    report = verify(tmp_path / "root", changed, hashes=tmp_path / "first.txt")
    assert report["first_difference"]["name"] == UP_1
    assert report["first_difference"]["megatron_name"] == "decoder.layers.1.mlp.linear_fc1.weight"
    assert report["worst"][0]["name"] == QKV_2
    hash_table(changed, tmp_path / "second.txt")
    first, second = ((tmp_path / f"{name}.txt").read_text().splitlines() for name in ("first", "second"))
    assert [two.split()[-1] for one, two in zip(first, second, strict=True) if one != two] == sorted([UP_1, QKV_2])
    assert verify(changed, changed)["first_difference"] is None


def test_a_hash_table_of_experts_does_not_depend_on_their_layout(tmp_path):
    model = tiny_model(experts=(5, 2))
    tensors = random_tensors(model)
    swapped = {key: part.transpose(1, 2).contiguous() if ".experts." in key else part for key, part in tensors.items()}
    hash_table(write_hf(tmp_path / "hf", model, swapped), tmp_path / "hashes.txt")
    assert (tmp_path / "hashes.txt").read_text() == _table_of(tensors)


def test_a_table_that_cannot_be_written_stops_before_the_work(tmp_path, one_model, write_hf):
    source = write_hf(one_model)
    save_file({}, source / "model.safetensors")  # reading it would stop, too: the file is looked at first
    for file in (tmp_path, tmp_path / "absent" / "hashes.txt"):
        with pytest.raises(CheckpointError, match="is a folder, or lies in none that can be written"):
            hash_table(source, file)
        with pytest.raises(CheckpointError, match="is a folder, or lies in none that can be written"):
            verify(source, source, hashes=file)
