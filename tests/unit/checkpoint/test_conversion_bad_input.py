"""Bad input through the command line: three parts on stderr, exit 2, nothing written; with one process and with two."""

import json
import os
import shutil

import pytest
from conversion_networks import random_tensors, tiny_model, write_hf
from safetensors.torch import load_file, save_file

from megatron_medx.checkpoint import content
from megatron_medx.checkpoint.convert import to_megatron
from megatron_medx.cli import main

TIED, UNTIED = tiny_model(3, 3, 8, (2, 1, 1), (), True, 3), tiny_model()
WEIGHTS, CONFIG = "model.safetensors", "config.json"
NORM, OUTPUT = "model.language_model.norm.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A Hugging Face directory and a checkpoint, both whole."""
    folder = tmp_path_factory.mktemp("whole")
    to_megatron(write_hf(folder / "hf", UNTIED, random_tensors(UNTIED)), folder / "root")
    return folder


def edit(folder, change):
    """Change the tensors of a directory."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def configure(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


HF = {
    "a tensor is missing": (lambda hf: edit(hf, lambda all: all.pop(NORM)), f"1 tensors missing: {NORM}"),
    "a tensor too many": (lambda hf: edit(hf, lambda all: all.update(x=all[NORM].clone())), "1 tensors not known: x"),
    "a wrong shape": (lambda hf: edit(hf, lambda all: all.update({NORM: all[NORM][1:]})), "[39] instead of [40]"),
    "cut short": (lambda hf: os.truncate(hf / WEIGHTS, 40_000), "cannot be read"),
    "another architecture": (lambda hf: configure(hf, architectures=["LlamaForCausalLM"]), "['LlamaForCausalLM']"),
    "no weights": (lambda hf: (hf / WEIGHTS).unlink(), "holds neither model.safetensors nor"),
    "tied by its config, with another output layer": (
        lambda hf: configure(hf, tie_word_embeddings=True), "tie_word_embeddings is true, and lm_head.weight differs"
    ),
    "not tied by its config, without an output layer": (
        lambda hf: edit(hf, lambda all: all.pop(OUTPUT)), "check tie_word_embeddings"
    ),
}  # fmt: skip

MEGATRON = {
    "still being written": (lambda root: (root / "release/metadata.json").unlink(), "wait until the save is finished"),
    "its data cut short": (lambda root: os.truncate(root / "release/__0_0.distcp", 30_000), "has 30000 bytes"),
    "its data absent": (lambda root: (root / "release/__0_0.distcp").unlink(), "has 0 bytes"),
    "of another network than run.yaml says": (
        lambda root: (root / "run.yaml").write_text((root / "run.yaml").read_text().replace("layers: 2", "layers: 3")),
        "tensors missing: decoder.layers.2",
    ),
    "without run.yaml": (lambda root: (root / "run.yaml").unlink(), "has no run.yaml"),
}
"""What is wrong -> how to make it so, and what the error says of it."""


def refused(words, part, folder, capsys):
    """Run a command that must end with 2, say a part in three-part form, and change nothing in a folder."""
    before = sorted(folder.rglob("*"))
    assert main(["convert", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert part in said
    assert [line for line in said.splitlines() if line][-1].startswith("do:") and "\nneeded: " in said
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", HF)
def test_a_bad_directory_is_refused(whole, tmp_path, capsys, name, workers):
    spoil, part = HF[name]
    spoil(shutil.copytree(whole / "hf", tmp_path / "hf"))
    words = ["to-megatron", tmp_path / "hf", tmp_path / "out", "--shard-size", "20KB", "--workers", workers]
    refused(words, part, tmp_path, capsys)


@pytest.mark.parametrize("name", MEGATRON)
def test_a_bad_checkpoint_is_refused(whole, tmp_path, capsys, name):
    spoil, part = MEGATRON[name]
    spoil(shutil.copytree(whole / "root", tmp_path / "root"))
    refused(["to-hf", tmp_path / "root", tmp_path / "out", "--workers", "2"], part, tmp_path, capsys)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_data_that_turn_out_to_be_garbage_leave_nothing(whole, tmp_path, capsys, workers):
    shutil.copytree(whole / "root", tmp_path / "root")
    path = tmp_path / "root" / "release" / "__0_0.distcp"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size - size // 2))
    words = ["to-hf", tmp_path / "root", tmp_path / "out", "--shard-size", "20KB", "--workers", workers]
    refused(words, "cannot be read", tmp_path, capsys)


@pytest.mark.parametrize("direction", ["to-hf", "to-megatron"])
def test_an_output_that_exists_and_a_disk_that_is_too_small(whole, tmp_path, capsys, monkeypatch, direction):
    source = whole / ("root" if direction == "to-hf" else "hf")
    words = [direction, source, tmp_path / "out"]
    assert main(["convert", *map(str, words)]) == 0
    refused(words, "out exists", tmp_path, capsys)
    refused([*words[:2], source, "--overwrite"], "is, or contains, the source", whole, capsys)
    monkeypatch.setattr(content, "OVERHEAD_BYTES", 10**15)
    refused([*words[:2], tmp_path / "other"], " GB free in ", tmp_path, capsys)
    refused([*words[:2], tmp_path / "other"], "1000000.000 GB for the output", tmp_path, capsys)


@pytest.mark.parametrize("name", ["release", "iter_0000005"])
def test_a_root_is_not_called_like_a_folder_inside_of_one(whole, tmp_path, capsys, name):
    refused(
        ["to-megatron", whole / "hf", tmp_path / name], f"{name} as the name of a checkpoint's root", tmp_path, capsys
    )


def test_tied_weights_in_an_untied_network(tmp_path, capsys):
    hf = write_hf(tmp_path / "hf", TIED, random_tensors(TIED))
    text = json.loads((hf / CONFIG).read_text())["text_config"]
    configure(hf, tie_word_embeddings=False, text_config=text | {"tie_word_embeddings": False})
    refused(["to-megatron", hf, tmp_path / "out"], "1 tensors missing: lm_head.weight", tmp_path, capsys)
