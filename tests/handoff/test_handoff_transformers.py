"""An export in stock transformers: 5.x in a process of its own, and 4.57 in a second environment."""

from pathlib import Path

import pytest
import torch
from second_environment import REPOSITORY, run_in_version_4, run_in_version_5
from transformers_run import NUM_NEW_TOKENS, picture

from megatron_medx.checkpoint.convert import to_megatron
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.running.logits import Sample
from megatron_medx.checkpoint.running.megatron_logits import write_megatron_logits
from megatron_medx.data.positions import mrope_positions

CLASSES = {"dense": "Qwen3VLForConditionalGeneration", "moe": "Qwen3VLMoeForConditionalGeneration"}
NETWORK_TOLERANCE = 1e-5
"""Of a logit, in fp32; the worst seen is 4.1e-6 (dense) and 3.5e-6 (experts)."""
VERSIONS_TOLERANCE = 1e-5
"""Between 4.57 and 5; the worst seen is 2.2e-6 (dense) and 2.9e-6 (experts)."""


@pytest.fixture(scope="session")
def exports(export_dir, moe_export_dir) -> dict[str, Path]:
    return {"dense": export_dir, "moe": moe_export_dir}


@pytest.fixture(scope="session")
def in_version_5(exports, tmp_path_factory) -> dict:
    return run_in_version_5(exports, tmp_path_factory.mktemp("five"))


@pytest.fixture(scope="session")
def in_version_4(exports, tmp_path_factory) -> dict:
    return run_in_version_4(exports, tmp_path_factory.mktemp("four"))


def check_what_was_read(found: dict, kind: str) -> None:
    """Every key read, no weight made up, nothing warned of, and the config as it was written."""
    one = found[kind]
    assert one["class"] == CLASSES[kind]
    assert one["dtype"] == "torch.float32"
    assert not any(one["loading"].values()), one["loading"]
    assert not one["warnings"], one["warnings"]
    for word in ("newly initialized", "were not used", "MISSING", "UNEXPECTED", "Unrecognized keys"):
        assert word not in found["said"], found["said"]
    assert one["num_experts"] == {"dense": None, "moe": 6}[kind]
    assert (one["rope_theta"], one["mrope_section"], one["mrope_interleaved"]) == (5_000_000.0, [4, 2, 2], True)
    assert one["image_size"] == {"shortest_edge": 64 * 64, "longest_edge": 160 * 160}
    assert one["image_grid_thw"].tolist() == [[1, 4, 6]]  # 70 x 90 px rounds to 64 x 96
    assert 1 <= len(one["generated"]) <= NUM_NEW_TOKENS


@pytest.mark.parametrize("kind", CLASSES)
def test_it_loads_and_generates_in_transformers_5(kind, in_version_5):
    assert in_version_5["version"].startswith("5.")
    check_what_was_read(in_version_5, kind)


@pytest.mark.parametrize("kind", CLASSES)
def test_its_logits_are_those_of_the_megatron_network(kind, exports, in_version_5, tmp_path):
    to_megatron(exports[kind], tmp_path / "megatron")
    checkpoint, stock = MegatronCheckpoint(tmp_path / "megatron"), in_version_5[kind]
    tokens_S, grids_I3 = stock["input_ids"], stock["image_grid_thw"]
    sample = Sample(
        tokens_1S=tokens_S[None],
        labels_1S=tokens_S[None],
        loss_weights_1S=torch.zeros(1, len(tokens_S)),
        positions_3S=mrope_positions(tokens_S, grids_I3, checkpoint.model.image_token_id, 2),
        pixels_PC=stock["pixel_values"],
        grids_I3=grids_I3,
    )
    write_megatron_logits(checkpoint, [sample], tmp_path)
    ours = torch.load(tmp_path / "0.pt")
    difference = (ours - stock["logits"]).abs().max().item()
    assert difference <= NETWORK_TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", CLASSES)
def test_it_loads_and_generates_in_transformers_4(kind, in_version_4):
    assert in_version_4["version"] == "4.57.3"
    check_what_was_read(in_version_4, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_both_versions_compute_the_same(kind, in_version_4, in_version_5):
    old, new = in_version_4[kind], in_version_5[kind]
    for name in ("input_ids", "image_grid_thw", "generated"):
        assert torch.equal(old[name], new[name]), name
    assert torch.equal(old["pixel_values"], new["pixel_values"])
    difference = (old["logits"] - new["logits"]).abs().max().item()
    assert difference <= VERSIONS_TOLERANCE


def test_the_example_answers(export_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    import generate_transformers

    picture().save(tmp_path / "gradient.png")
    words = [str(export_dir), "--image", str(tmp_path / "gradient.png"), "--max-new-tokens", "3"]
    answer = generate_transformers.main(words)
    assert capsys.readouterr().out.rstrip("\n") == answer.rstrip("\n")
