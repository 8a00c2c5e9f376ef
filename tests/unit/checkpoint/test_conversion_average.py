"""The weighted mean of checkpoints: against torch by hand, what it promises to the bit, and what it refuses."""

import dataclasses
import json
import math
import os

import pytest
import torch
import yaml
from conversion_networks import random_tensors, tiny_model, write_hf
from safetensors.torch import load_file

from megatron_medx.checkpoint import average as average_module
from megatron_medx.checkpoint.average import average
from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.verify import bit_equal
from megatron_medx.errors import CheckpointError

NORM = "model.language_model.norm.weight"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks that no tensor's size is a multiple of."""
    monkeypatch.setattr(average_module, "_BLOCK_VALUES", 1009)


@pytest.fixture
def inputs(tmp_path, one_model):
    """Function (number, dtype) -> their tensors, and their directories."""

    def make(number, dtype=torch.float32, model=one_model):
        tables = [random_tensors(model, dtype, seed) for seed in range(number)]
        return tables, [write_hf(tmp_path / f"in{seed}", model, table) for seed, table in enumerate(tables)]

    return make


def averaged(out, *paths, **options):
    average(out, paths, hf=True, **options)
    return load_file(out / "model.safetensors")


def all_equal(found, expected):
    return set(found) == set(expected) and all(bit_equal(found[key], expected[key]) for key in expected)


def provenance(folder):
    return yaml.safe_load((folder / "run.yaml").read_text())["provenance"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_of_a_directory_and_a_checkpoint_is_torchs(model, inputs, tmp_path, dtype):
    (first, second), (path, other) = inputs(2, dtype, model)
    to_megatron(other, tmp_path / "root")
    average(tmp_path / "mean", [path, tmp_path / "root"], weights=[0.3, 0.7])
    to_hf(tmp_path / "mean", tmp_path / "back")
    expected = {key: (0.3 * first[key].double() + 0.7 * second[key].double()).to(dtype) for key in first}
    assert all_equal(load_file(tmp_path / "back" / "model.safetensors"), expected)
    assert all_equal(averaged(tmp_path / "hf", path, tmp_path / "root", weights=[0.3, 0.7]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_inputs_come_out_bit_equal(one_model, tmp_path, dtype):
    tensors = random_tensors(one_model, dtype)
    info = torch.finfo(dtype)
    extremes = [-0.0, 0.0, info.max, -info.max, info.tiny, info.tiny * info.eps, -info.tiny * info.eps * 3]
    tensors[NORM][:7] = torch.tensor(extremes, dtype=torch.float64).to(dtype)
    path = write_hf(tmp_path / "in", one_model, tensors)
    for number in (2, 3, 7):
        assert all_equal(averaged(tmp_path / str(number), *[path] * number), tensors)
    off = [0.1234567891, 0.5, 0.3765432100]  # 9e-10 short of 1: as far as weights may be
    assert all_equal(averaged(tmp_path / "weighted", *[path] * 3, weights=off), tensors)
    assert all_equal(averaged(tmp_path / "task", path, base=path, scale=0.7), tensors)


def test_another_order_changes_no_more_than_is_promised(inputs, tmp_path):
    tables, paths = inputs(5)
    shares = [0.1, 0.15, 0.2, 0.25, 0.3]
    there = averaged(tmp_path / "there", *paths, weights=shares)
    back = averaged(tmp_path / "back", *reversed(paths), weights=shares[::-1])
    for key, mean in there.items():
        largest = max(table[key].abs().max().item() for table in tables)
        step = torch.nextafter(mean.abs(), torch.tensor(math.inf)) - mean.abs()
        assert ((mean - back[key]).abs() <= step + 5 * 2**-52 * largest).all()
        exact = [math.fsum(s * float(t[key].flatten()[3]) for s, t in zip(shares, tables, strict=True))]
        assert mean.flatten()[3] == torch.tensor(exact, dtype=torch.float64).float()


def test_a_base_and_a_scale_merge_task_vectors(inputs, tmp_path):
    (base, first, second), (base_path, *branches) = inputs(3)
    merged = averaged(tmp_path / "out", *branches, base=base_path, scale=0.7)
    for key, tensor in merged.items():
        mean = (first[key].double() + second[key].double()) / 2
        expected = base[key].double() + 0.7 * (mean - base[key].double())
        torch.testing.assert_close(tensor.double(), expected, rtol=2**-24, atol=1e-12)  # one rounding to float32
    assert [entry["weight"] for entry in provenance(tmp_path / "out")["averaged"]] == pytest.approx([0.3, 0.35, 0.35])


def test_dtypes_are_kept_or_cast(inputs, tmp_path, one_model):
    tables, (first,) = inputs(1, torch.bfloat16)
    mixed = random_tensors(one_model, torch.bfloat16, 5)
    mixed[NORM] = mixed[NORM].float()
    second = write_hf(tmp_path / "mixed", one_model, mixed)
    kept = averaged(tmp_path / "kept", first, second)
    assert {key for key, tensor in kept.items() if tensor.dtype == torch.float32} == {NORM}
    cast = averaged(tmp_path / "fp32", first, second, dtype="fp32")
    expected = {key: ((tables[0][key].double() + mixed[key].double()) / 2).float() for key in mixed}
    assert all_equal(cast, expected)
    assert json.loads((tmp_path / "fp32" / "config.json").read_text())["dtype"] == "float32"
    with pytest.raises(CheckpointError, match="dtype 'fp8'"):
        average(tmp_path / "no", [first, second], dtype="fp8")


@pytest.mark.parametrize("hf", [True, False])
def test_provenance_says_what_was_averaged(inputs, tmp_path, hf):
    _, (first, second) = inputs(2)
    to_megatron(second, tmp_path / "root")
    (tmp_path / "root" / "release").rename(tmp_path / "root" / "iter_0000005")
    (tmp_path / "root" / "latest_checkpointed_iteration.txt").write_text("5")
    average(tmp_path / "out", [first, tmp_path / "root"], weights=[0.25, 0.75], dtype="bf16", hf=hf)
    written = provenance(tmp_path / "out")
    assert written["averaged"] == [
        {"path": str(first), "weight": 0.25, "step": None},
        {"path": str(tmp_path / "root" / "iter_0000005"), "weight": 0.75, "step": 5},
    ]
    ending = "--weights 0.25,0.75 --dtype bf16" + " --hf" * hf
    assert written["command"] == f"medx convert average {tmp_path}/out {first} {tmp_path}/root {ending}"


def test_the_first_tokenizer_travels_and_another_is_told(inputs, tmp_path, caplog):
    _, paths = inputs(2)
    for number, path in enumerate(paths):
        (path / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "number": number}))
    average(tmp_path / "out", paths)
    assert json.loads((tmp_path / "out" / "processor" / "tokenizer.json").read_text())["number"] == 0
    assert "in1/tokenizer.json differ" in caplog.text


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_by_name_and_nothing_stays(inputs, one_model, tmp_path, bad):
    _, paths = inputs(2)
    spoiled = random_tensors(one_model)
    spoiled["model.visual.blocks.2.attn.qkv.weight"][-1, -1] = bad
    paths.append(write_hf(tmp_path / "spoiled", one_model, spoiled))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"blocks\.2\.attn\.qkv\.weight \(vision.*\) in .*spoiled holds NaN or inf"
    ):
        average(tmp_path / "out", paths)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_result_that_the_dtype_cannot_hold_is_refused(inputs, tmp_path):
    _, (base, other) = inputs(2)
    with pytest.raises(CheckpointError, match=r"the result for .* reaches .*e\+39"):
        average(tmp_path / "out", [other], base=base, scale=1e39)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [0.5, 0.3]}, r"weights 0\.5, 0\.3 with sum 0\.8\nneeded: weights above 0 with sum 1"),
        ({"weights": [0.5, 0.500001]}, r"sum 1\.000001"),
        ({"weights": [1.5, -0.5]}, r"weights 1\.5, -0\.5 with sum 1"),
        ({"weights": [math.nan, 1.0]}, "sum nan"),
        ({"weights": [1.0]}, "1 weights for 2 checkpoints"),
        ({"scale": 0.5}, r"base None, scale 0\.5"),
        ({"base": "in0"}, "base in0, scale None"),
        ({"base": "in0", "scale": math.inf}, "scale inf"),
    ],
)
def test_weights_that_make_no_mean_are_refused(inputs, tmp_path, options, message):
    with pytest.raises(CheckpointError, match=message):
        average(tmp_path / "out", inputs(2)[1], **options)


def test_one_checkpoint_has_no_mean(inputs, tmp_path):
    with pytest.raises(CheckpointError, match="1 checkpoints to average\nneeded: 2 or more"):
        average(tmp_path / "out", inputs(1)[1])
    with pytest.raises(CheckpointError, match="0 checkpoints to average\nneeded: 1 or more"):
        average(tmp_path / "out", [], base=tmp_path / "in0", scale=1.0)


def test_different_networks_are_refused_with_the_differences(inputs, one_model, tmp_path):
    _, (first,) = inputs(1)
    other = dataclasses.replace(one_model, rope_theta=1e4, num_layers=3)
    second = write_hf(tmp_path / "other", other, random_tensors(other))
    with pytest.raises(CheckpointError, match=r"different networks: num_layers 2 and 3, rope_theta 5000000\.0 and 10"):
        average(tmp_path / "out", [first, second])


def test_an_output_around_any_input_is_refused(inputs, tmp_path):
    _, (first, second) = inputs(2)
    (tmp_path / "run").mkdir()
    second = second.rename(tmp_path / "run" / "in1")
    with pytest.raises(CheckpointError, match=r"the output .*run is, or contains, the source .*run/in1"):
        average(tmp_path / "run", [first, second], overwrite=True)
    with pytest.raises(CheckpointError, match="in0 exists"):
        average(first, [second, second])


def test_experts_are_averaged_in_the_layout_of_the_hub(tmp_path):
    model = tiny_model(experts=(5, 2))
    tables = [random_tensors(model, seed=seed) for seed in (1, 2)]
    hub = write_hf(tmp_path / "hub", model, tables[0])
    swapped = {k: part.transpose(1, 2).contiguous() if ".experts." in k else part for k, part in tables[1].items()}
    saved = write_hf(tmp_path / "saved", model, swapped)
    expected = {key: ((tables[0][key].double() + tables[1][key].double()) / 2).float() for key in tables[0]}
    assert all_equal(averaged(tmp_path / "out", hub, saved), expected)
