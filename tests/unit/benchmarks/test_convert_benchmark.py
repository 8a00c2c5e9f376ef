"""The benchmark of conversion: a whole run at a tiny size, its targets by hand, what it compares."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import convert


@pytest.fixture
def in_this_process(monkeypatch):
    """Without processes of their own for the steps that are not measured: each would import torch for seconds."""
    monkeypatch.setattr(convert, "_alone", lambda function, *arguments: function(*arguments))


def test_a_tiny_run_measures_both_directions_and_leaves_nothing(tmp_path, capfd, in_this_process):
    code = convert.main(["--size", "tiny", "--rounds", "1", "--folder", str(tmp_path)])
    summary = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert list(tmp_path.iterdir()) == []
    for direction in convert.DIRECTIONS:
        one = summary[direction]
        assert 5e6 < one["bytes"] < 10e6 and 1e7 < one["anonymous_bytes"] < one["peak_bytes"] < 1.5e9
        assert one["ratio"] == pytest.approx(one["seconds"] / one["copy_seconds"], rel=1e-3)
        assert 0 < one["copy_seconds"] and 0 < one["cpu_seconds"]
    assert (summary["plan"]["hf_keys"], summary["plan"]["megatron_keys"]) == (1388, 1200)
    assert summary["plan"]["bytes"] == pytest.approx(471e9, rel=0.01)
    assert code == 1 and not summary["reached"]
    assert {"to-megatron ratio", "to-hf ratio"} <= set(summary["missed"])  # start-up alone takes longer than the copy


def test_a_target_is_missed_by_either_direction_or_the_plan():
    good = {"ratio": 1.69, "peak_bytes": 1.49e9}
    plan = {"seconds": 9.9, "peak_bytes": 499e6}
    assert convert.missed_targets({"to-hf": good, "to-megatron": good}, plan) == []
    slow, large = good | {"ratio": 1.7}, good | {"peak_bytes": 1.5e9}
    assert convert.missed_targets({"to-hf": slow, "to-megatron": large}, plan | {"seconds": 10.0}) == [
        "to-hf ratio",
        "to-megatron peak_bytes",
        "plan seconds",
    ]


def test_times_are_medians_and_memory_is_the_worst():
    names = ("seconds", "cpu_seconds", "copy_seconds", "peak_bytes", "anonymous_bytes", "bytes")
    rounds = [dict.fromkeys(names, value) for value in (3.0, 1.0, 2.0)]
    rounds[0]["copy_seconds"] = 8.0
    found = convert.summarize(rounds)
    assert (found["seconds"], found["copy_seconds"], found["ratio"], found["peak_bytes"]) == (2.0, 2.0, 1.0, 3.0)


def test_the_source_is_finite_and_a_changed_bit_is_seen(tmp_path):
    model = convert.SIZES["tiny"]()
    for name in ("first", "second"):
        convert.make_source(tmp_path / name, model)
    assert convert.different_tensors(tmp_path / "first", tmp_path / "second") == []
    tensors = load_file(tmp_path / "second" / "model.safetensors")
    assert all(tensor.isfinite().all() and tensor.abs().max() < 2 for tensor in tensors.values())
    key = "model.visual.patch_embed.proj.bias"
    tensors[key].view(torch.int16)[3] ^= 1
    save_file(tensors, tmp_path / "second" / "model.safetensors")
    assert convert.different_tensors(tmp_path / "first", tmp_path / "second") == [key]


def test_a_child_that_fails_stops_the_benchmark():
    with pytest.raises(convert.subprocess.CalledProcessError):
        convert.run_child("megatron_medx.cli", "convert", "sideways")
