"""Dry runs: the plan is that of the conversion, the light way to it agrees with the whole one, rates are measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conversion_networks import random_tensors, tiny_model, write_hf
from safetensors.torch import save_file

from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.hugging_face.hf_config import config_json
from megatron_medx.checkpoint.hugging_face.safetensors_stream import SafetensorsFile
from megatron_medx.checkpoint.megatron_files.torch_dist import TorchDistFolder
from megatron_medx.checkpoint.planning import disk_rate, dry_run
from megatron_medx.cli import main
from megatron_medx.errors import CheckpointError

SHARD_BYTES = 20_000


@pytest.fixture
def converted(model, tmp_path):
    """A Hugging Face directory in shards and a checkpoint, of every tiny network."""
    write_hf(tmp_path / "whole", model, random_tensors(model, torch.bfloat16))
    to_megatron(tmp_path / "whole", tmp_path / "root", shard_size_bytes=SHARD_BYTES)
    to_hf(tmp_path / "root", tmp_path / "hf", shard_size_bytes=SHARD_BYTES)
    return tmp_path


def plan(direction, source, out, **options):
    options = {"overwrite": False, "shard_size_bytes": SHARD_BYTES, "bytes_per_s": 1e6, **options}
    return dry_run.dry_run(source, out, direction=direction, **options)


def test_the_files_of_the_plan_are_those_of_the_conversion(converted):
    there = plan("to-megatron", converted / "hf", converted / "out")
    paths = [converted / "root" / "release" / one["name"] for one in there["files"]]
    assert sorted(paths) == sorted((converted / "root" / "release").glob("*.distcp"))
    stored = TorchDistFolder(converted / "root" / "release").specs
    assert {one["megatron"]: tuple(one["megatron_shape"]) for one in there["keys"]} == {
        key: spec.shape for key, spec in stored.items()
    }
    assert sum(one["bytes"] for one in there["files"]) == there["bytes"] == sum(s.num_bytes for s in stored.values())
    back = plan("to-hf", converted / "root", converted / "out", dtype="keep", only=None)
    files = {one["name"]: SafetensorsFile(converted / "hf" / one["name"]).specs for one in back["files"]}
    assert sorted(files) == sorted(path.name for path in (converted / "hf").glob("*.safetensors"))
    for one in back["files"]:
        assert (one["tensors"], one["bytes"]) == (
            len(files[one["name"]]),
            sum(s.num_bytes for s in files[one["name"]].values()),
        )
    for one in back["keys"]:
        for key, shape in zip(one["hf"], one["hf_shapes"], strict=True):
            assert any(files[name].get(key) and files[name][key].shape == tuple(shape) for name in one["files"])
    assert back["keys"][0]["dtype"] == "bfloat16" and back["time"]["seconds"] == back["bytes"] / 1e6


@pytest.mark.parametrize("dtype", ["keep", "fp32"])
def test_headers_and_sizes_alone_give_the_plan_that_the_opened_source_gives(converted, monkeypatch, dtype):
    light = plan("to-megatron", converted / "hf", converted / "out", dtype=dtype)
    sizes = converted / "sizes"
    sizes.mkdir()
    (sizes / "config.json").write_bytes((converted / "hf" / "config.json").read_bytes())
    from_sizes = plan("to-megatron", sizes, converted / "out", dtype=dtype)
    monkeypatch.setattr(dry_run, "is_hf_directory", lambda folder: False)
    whole = plan("to-megatron", converted / "hf", converted / "out", dtype=dtype)
    for name in ("keys", "files", "bytes", "tensors"):
        assert light[name] == whole[name] == from_sizes[name], name


def test_an_export_is_planned_from_run_yaml_alone(converted):
    root = converted / "planned"
    root.mkdir()
    (root / "run.yaml").write_bytes((converted / "root" / "run.yaml").read_bytes())
    whole = plan("to-hf", converted / "root", converted / "out", dtype="bf16", only="vision")
    assert plan("to-hf", root, converted / "out", dtype="bf16", only="vision")["keys"] == whole["keys"]
    with pytest.raises(
        CheckpointError, match=r"holds no weights, and --dtype keep(.|\n)*add --dtype bf16 or --dtype fp32"
    ):
        plan("to-hf", root, converted / "out", dtype="keep", only=None)


def test_sizes_without_a_dtype_are_refused(one_model, tmp_path):
    config = {**config_json(one_model, torch.bfloat16, {}), "dtype": "float8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json names the dtype float8"):
        plan("to-megatron", tmp_path, tmp_path / "out")
    assert plan("to-megatron", tmp_path, tmp_path / "out", dtype="fp32")["keys"][0]["dtype"] == "float32"


def test_the_plan_refuses_what_the_conversion_refuses(one_model, tmp_path):
    tensors = random_tensors(one_model)
    write_hf(tmp_path / "hf", one_model, tensors)
    out = tmp_path / "out"
    save_file(
        {key: part for key, part in tensors.items() if key != "lm_head.weight"}, tmp_path / "hf/model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"1 tensors missing: lm_head\.weight"):
        plan("to-megatron", tmp_path / "hf", out)
    save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"][1:]}, tmp_path / "hf/model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight \[95, 40\] instead of \[96, 40\]"):
        plan("to-megatron", tmp_path / "hf", out)
    key = "model.language_model.layers.0.self_attn.k_proj.weight"
    save_file({**tensors, key: tensors[key].half()}, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CheckpointError, match="one dtype for the tensors that make up"):
        plan("to-megatron", tmp_path / "hf", out)
    save_file({**tensors, key: tensors[key].long()}, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"k_proj\.weight in .* has dtype I64"):
        plan("to-megatron", tmp_path / "hf", out)
    os.truncate(tmp_path / "hf" / "model.safetensors", 5_000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        plan("to-megatron", tmp_path / "hf", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_a_part_alone_is_refused_by_the_plan_too(converted):
    to_hf(converted / "root", converted / "part", only="vision")
    with pytest.raises(CheckpointError, match="holds the vision part of a network alone"):
        plan("to-megatron", converted / "part", converted / "out")


def test_the_command_says_what_it_would_do_and_writes_nothing(one_model, tmp_path, capsys):
    source = write_hf(tmp_path / "hf", one_model, random_tensors(one_model))
    words = ["convert", "to-megatron", str(source), str(tmp_path / "deep" / "out"), "--dry-run", "--shard-size", "20KB"]
    assert main([*words, "--json", str(tmp_path / "plan.json")]) == 0
    text = capsys.readouterr().out
    report = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert "model.language_model.layers.{0..1}.self_attn.{q,k,v}_proj.weight" in text
    assert "decoder.layers.{0..1}.self_attention.linear_qkv.weight" in text
    assert f"{report['tensors']['hf']} (Hugging Face) -> {report['tensors']['megatron']} (Megatron)" in text
    assert "out may be written" in text and "measured now" in text and "nothing was written" in text
    write, read = report["time"]["write"], report["time"]["read"]
    assert (
        write["bytes"] % disk_rate.BLOCK_BYTES == 0 and read["bytes"] == (source / "model.safetensors").stat().st_size
    )
    estimate = report["bytes"] * (write["seconds"] / write["bytes"] + read["seconds"] / read["bytes"])
    assert report["time"]["seconds"] == pytest.approx(estimate) and estimate > 0
    assert report["time"]["read_from"] == str(source / "model.safetensors")


def test_what_stands_in_the_way_is_said(one_model, write_hf, tmp_path, capsys, monkeypatch):
    source = write_hf(one_model)
    monkeypatch.setattr(dry_run, "OVERHEAD_BYTES", 10**18)
    words = ["convert", "to-megatron", str(source), str(tmp_path), "--dry-run", "--assume-rate", "1KB"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "is, or contains, the source" in text and "GB free, 1000000000.000 GB needed" in text
    assert "at the assumed 0 MB/s" in text and "about 4 min" in text
    (tmp_path / "out.partial" / "finished").mkdir(parents=True)
    (tmp_path / "out.partial" / "finished" / "x.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    assert main([*words[:3], str(tmp_path / "out"), *words[4:]]) == 0
    text = capsys.readouterr().out
    assert "out exists (choose another name, or add --overwrite)" in text and "left 1 finished files" in text


def test_a_disk_that_may_not_be_written_has_no_rate(one_model, write_hf, tmp_path, monkeypatch, capsys):
    source = write_hf(one_model)
    monkeypatch.setattr(os, "access", lambda *_: False)
    report = plan("to-megatron", source, tmp_path / "out", bytes_per_s=None)
    assert report["time"]["seconds"] is None and report["obstacles"] == [f"{tmp_path} may not be written"]
    assert main(["convert", "to-megatron", str(source), str(tmp_path / "out"), "--dry-run"]) == 0
    assert "its speed was not measured" in capsys.readouterr().out


def test_a_trial_stops_at_its_bytes_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_rate, "BLOCK_BYTES", 1_000)
    monkeypatch.setattr(disk_rate, "MOST_BYTES", 3_000)
    monkeypatch.setattr(disk_rate, "MOST_WRITE_S", 60.0)
    assert disk_rate.write_rate(tmp_path)["bytes"] == 3_000 and list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"x" * 2_500)
    assert disk_rate.read_rate(tmp_path / "file")["bytes"] == 2_500
    monkeypatch.setattr(disk_rate, "MOST_WRITE_S", 0.0)
    assert disk_rate.write_rate(tmp_path)["bytes"] == 1_000


def test_the_plan_of_a_sharded_source_loads_no_torch(tmp_path):
    model = tiny_model(experts=(5, 2))
    write_hf(tmp_path / "whole", model, random_tensors(model))
    to_megatron(tmp_path / "whole", tmp_path / "root")
    to_hf(tmp_path / "root", tmp_path / "hf", shard_size_bytes=SHARD_BYTES)
    words = ["convert", "to-megatron", str(tmp_path / "hf"), str(tmp_path / "out"), "--dry-run", "--assume-rate", "1GB"]
    command = [sys.executable, "-X", "importtime", "-m", "megatron_medx.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "safetensors" in loaded and not loaded & {"torch", "megatron", "transformers"}
    assert "nothing was written" in done.stdout


def test_options_of_a_plan_are_refused_where_none_is_asked_for(tmp_path, capsys):
    words = ["convert", "to-hf", str(tmp_path), str(tmp_path / "out"), "--json", str(tmp_path / "plan.json")]
    assert main(words) == 2
    assert "--json without --dry-run" in capsys.readouterr().err


def test_a_directory_that_only_the_text_section_ties_is_planned_as_it_is_converted(tmp_path):
    """As transformers 4.57 writes one: the absent output layer tells."""
    network = tiny_model(3, 3, 8, (2, 1, 1), (), True, 3)
    hf = write_hf(tmp_path / "hf", network, random_tensors(network))
    config = json.loads((hf / "config.json").read_text())
    text = config["text_config"] | {"tie_word_embeddings": True}
    (hf / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False, "text_config": text}))
    to_megatron(hf, tmp_path / "root")
    keys = {one["megatron"] for one in plan("to-megatron", hf, tmp_path / "out")["keys"]}
    assert keys == set(TorchDistFolder(tmp_path / "root" / "release").specs)


def test_a_root_that_may_not_be_called_so_is_an_obstacle(tmp_path):
    hf = write_hf(tmp_path / "hf", tiny_model(), random_tensors(tiny_model()))
    (obstacle,) = plan("to-megatron", hf, tmp_path / "release")["obstacles"]
    assert obstacle.startswith("release as the name of a checkpoint's root")
