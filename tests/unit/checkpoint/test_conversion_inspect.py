"""What `inspect` and `diff` say, against values counted by hand; and what they refuse."""

import argparse
import collections
import dataclasses
import json
import math
import pickle
import re

import pytest
import torch
from conversion_networks import random_tensors, tiny_model, write_hf

from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.megatron_files import torch_dist
from megatron_medx.checkpoint.megatron_files.run_state import COMMON_STATE_KEY, run_state
from megatron_medx.checkpoint.reports import tensor_norms
from megatron_medx.checkpoint.reports.diff import diff
from megatron_medx.checkpoint.reports.diff_lines import NUM_SHOWN, diff_lines
from megatron_medx.checkpoint.reports.inspection import inspect
from megatron_medx.checkpoint.reports.inspection_lines import inspection_lines
from megatron_medx.checkpoint.reports.layer_ranges import by_layer
from megatron_medx.checkpoint.reports.tensor_norms import distance, norms
from megatron_medx.checkpoint.verify import hash_table
from megatron_medx.config.files import write_run_yaml
from megatron_medx.config.parameters import part_counts
from megatron_medx.config.run import ParallelSection, RunConfig
from megatron_medx.errors import CheckpointError, ConfigError

NAN, INF = float("nan"), float("inf")
EMBEDDINGS = "model.language_model.embed_tokens.weight"
UP_1 = "model.language_model.layers.1.mlp.up_proj.weight"
QKV_2 = "model.visual.blocks.2.attn.qkv.weight"


@pytest.fixture
def small_slices(monkeypatch):
    """Slices of 7 values, so that tiny tensors have several, the last one shorter."""
    monkeypatch.setattr(tensor_norms, "SLICE_VALUES", 7)


class Unwelcome:
    """An object of a class that only the run has: reading the file must not make one."""

    def __init__(self, created=True):
        self.entries = [3]

    def __reduce__(self):
        return _unwelcome, (), {"more": torch.ones(2)}


def _unwelcome():
    pytest.fail("the file's own code was run")


@pytest.fixture
def run_root(one_model, write_hf, tmp_path, monkeypatch):
    """A run folder whose step 7 is a checkpoint with the tensors of `hf`, written on another grid than run.yaml's."""
    arguments = argparse.Namespace(
        world_size=12,
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=3,
        virtual_pipeline_model_parallel_size=None,
        decoder_first_pipeline_num_layers=1,
        data_parallel_size=2,
        consumed_train_samples=4321,
        timers=Unwelcome(),
    )
    state = {"args": arguments, "optimizer": collections.OrderedDict(lr=Unwelcome()), "iteration": 7}
    with monkeypatch.context() as patched:
        patched.setattr(torch_dist, "COMMON_STATE", state)
        to_megatron(write_hf(one_model), tmp_path / "run" / "checkpoints")
    root = tmp_path / "run" / "checkpoints"
    (root / "release").rename(root / "iter_0000007")
    (root / "latest_checkpointed_iteration.txt").write_text("7")
    write_run_yaml(_run(one_model), root / "run.yaml", {"command": "medx train demo", "versions": {"torch": "9.9"}})
    return tmp_path / "run"


def _run(model):
    config = RunConfig(model=model)
    config.run.recipe, config.run.seed, config.data.path = "demo", 77, "data/chest"
    config.training.steps = 1300
    config.parallel = ParallelSection(world_size=5)
    return config


def test_norms_are_those_of_the_finite_values(small_slices):
    values = torch.arange(-20.0, 15.0).reshape(5, 7)
    values[1, 3], values[2, 2], values[4, 6], values[4, 5] = NAN, INF, -INF, NAN
    finite = [value for value in values.flatten().tolist() if math.isfinite(value)]
    found = norms(values)
    assert found.norm == pytest.approx(math.sqrt(sum(value**2 for value in finite)), rel=1e-14)
    assert (found.max_abs, found.num_nan, found.num_inf) == (20.0, 2, 2)
    assert norms(torch.tensor([NAN])) == tensor_norms.Norms(0.0, 0.0, 1, 0)
    assert norms(torch.empty(0, 3)) == tensor_norms.Norms(0.0, 0.0, 0, 0)
    assert norms(torch.tensor([3e38, 3e38])).norm == pytest.approx(3e38 * math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_do_not_round_in_the_dtype_of_the_weights(small_slices, dtype):
    values = torch.randn(13, 11, generator=torch.Generator().manual_seed(3)).to(dtype)
    exact = sum(value**2 for value in values.double().flatten().tolist()) ** 0.5
    assert norms(values).norm == pytest.approx(exact, rel=1e-14)


def test_distance_is_relative_to_the_larger_side(small_slices):
    left, right = torch.ones(3, 5), torch.ones(3, 5, dtype=torch.bfloat16)
    assert distance(left, right) == tensor_norms.Distance(0.0, 0.0, [math.sqrt(15), math.sqrt(15)])
    assert distance(left, -left).relative_diff == 2.0
    assert distance(torch.zeros(9), torch.tensor([0.0] * 8 + [4.0])) == tensor_norms.Distance(1.0, 4.0, [0.0, 4.0])
    assert distance(torch.zeros(2), -torch.zeros(2)).relative_diff == 0.0
    same = torch.tensor([NAN, INF, -INF, 1.0])
    assert distance(same, same).relative_diff == 0.0
    for other in (torch.tensor([NAN, INF, INF, 1.0]), torch.tensor([0.0, INF, -INF, 1.0])):
        assert distance(same, other).relative_diff is None and distance(same, other).max_abs_diff is None
    late = torch.ones(20)
    late[1] = NAN
    assert distance(torch.ones(20), late).max_abs_diff is None


def test_layers_of_one_shape_stand_in_one_line():
    names = ["a.0.w", "a.1.w", "a.2.w", "a.5.w", "top", "a.3.w", "b.0.w", "a.10.b.11.w"]
    tensors = [{"name": name, "shape": 9 if name == "a.3.w" else 8} for name in names]
    groups = by_layer(tensors, lambda one: one["shape"])
    assert list(groups) == ["a.{0..2,5}.w", "top", "a.3.w", "b.0.w", "a.10.b.11.w"]
    assert [one["name"] for one in groups["a.{0..2,5}.w"]] == ["a.0.w", "a.1.w", "a.2.w", "a.5.w"]


@pytest.mark.parametrize("format_name", ["hf", "megatron"])
def test_inspect_lists_every_tensor_of_every_network(model, write_hf, tmp_path, format_name):
    tensors = random_tensors(model, torch.bfloat16)
    path = write_hf(model, tensors)
    if format_name == "megatron":
        to_megatron(path, tmp_path / "root")
        path = tmp_path / "root"
    report = inspect(path, with_norms=True)
    assert {part: total["parameters"] for part, total in report["totals"].items()} == part_counts(model)
    assert sum(total["bytes"] for total in report["totals"].values()) == sum(part.nbytes for part in tensors.values())
    assert sum(total["tensors"] for total in report["totals"].values()) == len(report["tensors"])
    hf_names = [name for one in report["tensors"] for name in ([one["name"]], one["other_names"])[format_name != "hf"]]
    assert sorted(hf_names) == sorted(tensors)
    for one in report["tensors"]:
        sides = [tensors[name].double() for name in hf_names if name in (one["name"], *one["other_names"])]
        assert one["norm"] == pytest.approx(math.sqrt(sum(side.square().sum().item() for side in sides)), rel=1e-12)
        assert one["max_abs"] == max(side.abs().max().item() for side in sides)
        assert one["dtype"] == "bfloat16" and one["num_nan"] == one["num_inf"] == 0
    assert report["network"]["sizes"]["vision"]["deepstack_layers"] == list(model.vision.deepstack_layers)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_inspect_says_what_a_hugging_face_directory_is(one_model, write_hf):
    report = inspect(write_hf(one_model))
    assert (report["kind"], report["step"], report["run"]) == ("Hugging Face directory", None, None)
    assert report["provenance"] == {"versions": {"transformers": "4.57.0"}} and report["files"]["ranks"] is None
    text = "\n".join(inspection_lines(report))
    assert "Qwen3VLForConditionalGeneration: 2 layers of 40, 4 heads in 2 groups of 16, MLP 56, vocabulary 96" in text
    assert "model.visual.blocks.{0..2}.attn.qkv.weight" in text and "optimizer" not in text and "L2 norm" not in text
    long = inspection_lines(report, every_tensor=True)
    assert any(line.startswith("model.visual.blocks.1.attn.qkv.weight") for line in long)


@pytest.mark.parametrize("place", [".", "checkpoints", "checkpoints/iter_0000007"])
def test_inspect_says_which_run_wrote_a_checkpoint(run_root, place):
    report = inspect(run_root / place)
    assert (report["kind"], report["step"], report["has_optimizer"]) == ("Megatron checkpoint", 7, False)
    assert (report["grid"]["data"], report["grid"]["context"], report["consumed_rows"]) == (2, None, 4321)
    assert report["files"]["ranks"] == 1
    rows = dict(re.split(r"\s+", line, maxsplit=1) for line in inspection_lines(report) if line)
    assert rows["step"] == "7 of 1,300, after 4,321 rows" and rows["data"] == "data/chest"
    assert rows["grid"] == "world 12: tensor 2, pipeline 3, first_stage_layers 1, data 2"
    assert rows["run"] == "demo, seed 77, bf16, started from seeded random weights"
    assert rows["versions"] == "torch 9.9" and rows["command"] == "medx train demo"


def test_inspect_says_that_a_release_was_converted(one_model, write_hf, tmp_path):
    to_megatron(write_hf(one_model), tmp_path / "root")
    report = inspect(tmp_path / "root")
    assert report["kind"].startswith("converted Megatron checkpoint") and report["run"] is None
    assert report["provenance"]["command"].startswith("medx convert to-megatron")
    assert not any(line.startswith(("step", "grid", "optimizer")) for line in inspection_lines(report))


def test_a_state_that_cannot_be_read_is_refused(run_root):
    folder = run_root / "checkpoints" / "iter_0000007"
    path = folder / ".metadata"
    index = pickle.loads(path.read_bytes())
    place = next(place for index, place in index.storage_data.items() if index.fqn == COMMON_STATE_KEY)
    place.length -= 9
    path.write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match=r"the common state in .* cannot be read"):
        inspect(run_root)
    place.relative_path = "__9_0.distcp"
    path.write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match=r"__9_0\.distcp, which holds the common state, is absent"):
        inspect(run_root)


def test_the_state_of_older_megatrons_lies_in_a_file(run_root):
    folder = run_root / "checkpoints" / "iter_0000007"
    torch.save({"args": argparse.Namespace(world_size=3, odd=Unwelcome())}, folder / "common.pt")
    found = run_state(folder)
    assert found["grid"]["world_size"] == 3 and found["grid"]["tensor"] is None and found["consumed_rows"] is None


def test_inspect_names_the_layers_that_are_not_finite(one_model, tmp_path):
    tensors = random_tensors(one_model)
    tensors[QKV_2][3, :2], tensors[QKV_2][4, 1] = NAN, -INF
    report = inspect(write_hf(tmp_path / "hf", one_model, tensors), with_norms=True)
    lines = inspection_lines(report)
    assert [line for line in lines if line.startswith("not")] == [f"not finite: {QKV_2}: 2 NaN, 1 infinite of 768"]
    (row,) = (line for line in lines if line.startswith("model.visual.blocks.{0..2}.attn.qkv.weight"))
    assert row.split()[-2:] == ["2", "1"] and ".." in row.split()[-4]


def test_inspect_refuses_what_is_not_whole(run_root, one_model, write_hf, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds neither config\.json nor latest_checkpointed_iteration\.txt"):
        inspect(tmp_path / "nothing")
    tensors = random_tensors(one_model)
    del tensors[UP_1]
    with pytest.raises(CheckpointError, match=rf"1 tensors missing: {re.escape(UP_1)}"):
        inspect(write_hf(one_model, tensors, "less"))
    root = run_root / "checkpoints"
    text = (root / "run.yaml").read_text()
    (root / "run.yaml").write_text(text.replace("seed: 77", "seed: soon"))
    with pytest.raises(ConfigError, match="seed"):
        inspect(run_root)
    (root / "iter_0000007" / "metadata.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no metadata\.json, which Megatron writes last"):
        inspect(run_root)


def test_diff_of_a_checkpoint_and_its_source_is_empty(model, write_hf, tmp_path):
    to_megatron(write_hf(model), tmp_path / "root")
    for pair in ((tmp_path / "hf", tmp_path / "root"), (tmp_path / "root", tmp_path / "root")):
        report = diff(*pair)
        assert report["equal"] and report["different"] == [] and report["run_differences"] == []
        assert sum(part["compared"] for part in report["parts"].values()) == len(random_tensors(model))
        assert diff_lines(report)[-1] == "equal"


def test_diff_sorts_by_the_relative_difference(one_model, write_hf, run_root):
    tensors = random_tensors(one_model)
    tensors[EMBEDDINGS] = tensors[EMBEDDINGS] * 1.5
    tensors[UP_1][3, 4] += 1000
    tensors[QKV_2][0, 0] = NAN
    tensors["lm_head.weight"] = tensors["lm_head.weight"].bfloat16().float()
    report = diff(run_root, write_hf(one_model, tensors, "other"))
    names = [one["name"] for one in report["different"]]
    assert names == [QKV_2, UP_1, EMBEDDINGS, "lm_head.weight"] and not report["equal"]
    spoiled, up, embeddings, _ = report["different"]
    assert spoiled["relative_diff"] is None and spoiled["max_abs_diff"] is None
    assert up["max_abs_diff"] == pytest.approx(1000, rel=1e-6) and up["relative_diff"] > 0.9
    assert up["megatron_names"] == ["decoder.layers.1.mlp.linear_fc1.weight"] * 2
    assert embeddings["relative_diff"] == pytest.approx(1 / 3, rel=1e-6)
    assert embeddings["norms"][1] == pytest.approx(1.5 * embeddings["norms"][0], rel=1e-6)
    assert {name: part["different"] for name, part in report["parts"].items()} == {
        "vision": 1,
        "merger": 0,
        "language": 3,
    }
    text = "\n".join(diff_lines(report))
    assert "4 differ: vision 1 of " in text and text.endswith("not equal")
    assert re.search(rf"{re.escape(QKV_2)} +vision\.encoder\.layers\.2\S+ +not finite +not finite", text)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_diff_of_two_networks_names_what_only_one_has(write_hf, tmp_path):
    dense, experts = tiny_model(), tiny_model(heads=5, groups=1, head_dim=16, experts=(5, 2), tied=True)
    to_megatron(write_hf(dense), tmp_path / "dense")
    report = diff(tmp_path / "dense", write_hf(experts, name="experts"))
    assert not report["equal"]
    assert {"num_heads 4 and 5", "num_experts 0 and 5"} <= set(report["network_differences"])
    assert {one["name"] for one in report["only_in_first"]} >= {UP_1, "lm_head.weight"}
    assert "model.language_model.layers.1.mlp.experts.down_proj" in {one["name"] for one in report["only_in_second"]}
    shapes = {one["name"]: one["shapes"] for one in report["other_shapes"]}
    assert shapes["model.language_model.layers.0.self_attn.q_proj.weight"] == [[64, 40], [80, 40]]
    lines = diff_lines(report)
    assert lines[2] == "the networks differ in"
    norm = "post_attention_layernorm.weight"
    assert not any(norm in line for line in lines)  # at another place in Megatron, equal values all the same
    assert any(
        "model.language_model.layers.{0..1}.mlp.up_proj.weight" in line
        and "decoder.layers.{0..1}.mlp.linear_fc1.weight" in line
        for line in lines
    )


def test_diff_compares_the_parts_of_a_group_that_have_one_shape(one_model, write_hf, tmp_path):
    """With another number of query heads, keys and values still have one shape, and stand in other Megatron rows."""
    to_megatron(write_hf(one_model), tmp_path / "first")
    other = dataclasses.replace(one_model, num_heads=6)
    tensors, wide = random_tensors(one_model), random_tensors(other)
    wide |= {key: tensors[key] for key, part in wide.items() if part.shape == tensors[key].shape}
    key = "model.language_model.layers.1.self_attn.v_proj.weight"
    wide[key] = wide[key] * 0.5
    to_megatron(write_hf(other, wide, "wide"), tmp_path / "second")
    report = diff(tmp_path / "first", tmp_path / "second")
    assert [(one["name"], one["relative_diff"]) for one in report["different"]] == [(key, pytest.approx(0.5))]


def test_diff_tells_runs_and_dtypes_apart(run_root, one_model, write_hf, tmp_path):
    other = tmp_path / "other"
    to_megatron(write_hf(one_model, random_tensors(one_model), "again"), other)
    config = _run(one_model)
    config.optimizer.lr = 3e-5
    write_run_yaml(config, other / "run.yaml", {})
    report = diff(run_root, other)
    assert report["equal"] and report["run_differences"] == ["optimizer.lr 0.0001 and 3e-05"]
    assert "  optimizer.lr 0.0001 and 3e-05" in diff_lines(report)
    to_hf(other, tmp_path / "bf16", dtype="bf16")
    report = diff(run_root, tmp_path / "bf16")
    count = len(random_tensors(one_model))
    lines = diff_lines(report)
    assert f"of two dtypes: {count} tensors, float32 and bfloat16" in lines
    assert f"  and {count - NUM_SHOWN} more" in lines
    assert len(diff_lines(report, every_tensor=True)) == len(lines) - 1 + count - NUM_SHOWN


def test_an_export_of_one_part_is_inspected_compared_and_hashed(run_root, one_model, tmp_path):
    to_hf(run_root, tmp_path / "tower", only="vision")
    report = inspect(tmp_path / "tower")
    assert report["only"] == "vision" and {one["part"] for one in report["tensors"]} == {"vision"}
    assert report["totals"]["vision"]["parameters"] == part_counts(one_model)["vision"]
    assert inspection_lines(report)[0].endswith("Hugging Face directory, the vision part alone")
    compared = diff(tmp_path / "tower", run_root)
    assert compared["parts"]["vision"]["compared"] == len(report["tensors"]) and not compared["different"]
    assert not compared["equal"] and not compared["only_in_first"]
    assert len(compared["only_in_second"]) == len(random_tensors(one_model)) - len(report["tensors"])
    assert hash_table(tmp_path / "tower", tmp_path / "hashes.txt") == len(report["tensors"])
