"""An export of one part: its tensors alone, a config.json that says so, and no way into a whole network."""

import json

import pytest
from conversion_networks import random_tensors, write_hf
from safetensors.torch import load_file

from megatron_medx.checkpoint.average import average
from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.layout.rules import hf_shapes
from megatron_medx.checkpoint.verify import bit_equal
from megatron_medx.checkpoint.weights import checked_bindings, open_weights, shared_bindings
from megatron_medx.errors import CheckpointError

PARTS = ("vision", "language", "merger")


@pytest.fixture
def root(one_model, tmp_path):
    to_megatron(write_hf(tmp_path / "hf", one_model, random_tensors(one_model)), tmp_path / "root")
    return tmp_path / "root"


def part_of(key):
    """Which part a key belongs to, by its name alone."""
    if not key.startswith("model.visual."):
        return "language"
    return "merger" if "merger" in key else "vision"


def test_a_part_holds_its_tensors_and_the_parts_are_the_whole(model, tmp_path):
    tensors = random_tensors(model)
    to_megatron(write_hf(tmp_path / "hf", model, tensors), tmp_path / "root")
    whole = {}
    for part in PARTS:
        to_hf(tmp_path / "root", tmp_path / part, only=part)
        stored = load_file(tmp_path / part / "model.safetensors")
        assert stored and {part_of(key) for key in stored} == {part}
        whole |= stored
    assert set(whole) == set(tensors) and all(bit_equal(whole[key], tensors[key]) for key in tensors)


def test_the_index_lists_the_part_and_the_config_is_the_whole_networks(root, tmp_path):
    to_hf(root, tmp_path / "out", only="vision", shard_size_bytes=5_000, dtype="bf16")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index and {part_of(key) for key in index} == {"vision"}
    config, source = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "hf"))
    assert config.pop("medx_part") == "vision" and config.pop("dtype") == "bfloat16"
    assert config["text_config"].pop("dtype") == "bfloat16"
    del source["dtype"], source["text_config"]["dtype"]
    assert config == source


def test_whoever_asks_for_the_part_gets_its_groups(root, tmp_path):
    to_hf(root, tmp_path / "out", only="merger")
    weights = open_weights(tmp_path / "out")
    assert set(hf_shapes(checked_bindings(weights, "merger"))) == set(weights.specs)
    with pytest.raises(CheckpointError, match="out holds the merger part of a network alone\nneeded: the vision part"):
        checked_bindings(weights, "vision")
    with pytest.raises(CheckpointError, match="hf is whole\nneeded: the vision part alone"):
        checked_bindings(open_weights(tmp_path / "hf"), "vision")


def test_two_directories_share_the_part_that_either_holds(root, tmp_path):
    for part in ("merger", "vision"):
        to_hf(root, tmp_path / part, only=part)
    merger, vision, whole = (open_weights(tmp_path / name) for name in ("merger", "vision", "hf"))
    for first, second in ((merger, whole), (whole, merger), (merger, merger), (open_weights(root), merger)):
        assert set(hf_shapes(shared_bindings(first, second))) == set(merger.specs)
    assert set(hf_shapes(shared_bindings(whole, open_weights(root)))) == set(whole.specs)
    with pytest.raises(CheckpointError, match=r"merger holds the merger part alone, .*vision the vision part"):
        shared_bindings(merger, vision)


def test_a_part_is_no_network(root, tmp_path):
    to_hf(root, tmp_path / "part", only="language")
    message = "part holds the language part of a network alone\nneeded: a whole network"
    with pytest.raises(CheckpointError, match=message):
        to_megatron(tmp_path / "part", tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        average(tmp_path / "out", [root, tmp_path / "part"])


def test_unknown_parts_are_refused(root, tmp_path):
    with pytest.raises(CheckpointError, match="part 'tower'\nneeded: one of vision, language, merger"):
        to_hf(root, tmp_path / "out", only="tower")
    config = json.loads((tmp_path / "hf" / "config.json").read_text()) | {"medx_part": "tower"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="part 'tower'"):
        to_megatron(tmp_path / "hf", tmp_path / "out")
