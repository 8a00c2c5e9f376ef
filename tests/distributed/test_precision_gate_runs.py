"""The precision gate with real ranks: bf16 measured by fp32 on a small grid; FP8 refused where it cannot compute."""

import functools
import json
import shutil

import pytest
import torch
from grids import PACKED, SMALL, words

from megatron_medx.config.checks import check
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.run import PrecisionSection
from megatron_medx.errors import ConfigError
from megatron_medx.recipes import get_recipe
from megatron_medx.training.launch import _launch_once
from megatron_medx.training.local_ranks import Ending
from megatron_medx.training.precision_gate import hold_gate

SECTIONS = {"bf16": PrecisionSection(dtype="bf16"), "fp32": PrecisionSection(dtype="fp32")}
STEPS = 3


@pytest.fixture(scope="module")
def gated(data, tmp_path_factory):
    """A run of five steps on two tensor ranks, with a gate of its first three."""
    overrides = [*SMALL, *PACKED, *words("tp2")[:-2], "parallel.world_size=2", f"data.path={data}"]
    config = apply_overrides(get_recipe("demo"), overrides)
    config.run.folder = str(tmp_path_factory.mktemp("gate") / "run")
    check(config)
    config.precision.gate_steps, config.precision.gate_max_gap = STEPS, 0.05
    return config


@pytest.fixture(scope="module")
def passed(gated):
    """The record of a gate that was held."""
    assert hold_gate(gated, functools.partial(_launch_once, resume=False, auto_resume=False), SECTIONS) == Ending(0)
    return json.loads((gated.run_folder / "precision_gate.json").read_text())


def test_bf16_is_close_to_fp32_and_not_equal(gated, passed):
    assert passed["passed"] and 0 < passed["gap"] < 0.05
    assert [len(trial["loss"]) for trial in passed["trials"].values()] == [STEPS, STEPS]
    assert (gated.run_folder / "precision_gate.png").exists()


def test_trials_leave_no_checkpoint_and_no_run(gated, passed):
    assert not list(gated.run_folder.rglob("iter_*")) and not (gated.run_folder / "run.yaml").exists()
    for name in SECTIONS:
        assert (gated.run_folder / "precision_gate" / name / "logs" / "rank_1.log").exists()


def test_trials_are_the_first_steps_of_the_run(runs, passed):
    """The reference computes in fp32, as the run of the same scenario and grid does that tests share."""
    whole = runs.scenario("dense", "tp2").result().ok()
    assert passed["trials"]["fp32"]["loss"] == pytest.approx(whole.column("loss")[:STEPS], rel=1e-5)


def test_the_same_trials_are_refused_by_a_lower_bound(gated, passed, tmp_path):
    shutil.copytree(gated.run_folder / "precision_gate", tmp_path / "done")
    gated.precision.gate_max_gap = 1e-12

    def already_run(trial):
        shutil.copytree(tmp_path / "done" / trial.run_folder.name, trial.run_folder)
        (trial.run_folder / "data").mkdir()
        return Ending(0)

    with pytest.raises(ConfigError, match=r"precision gate: loss .* in bf16, .* in fp32"):
        hold_gate(gated, already_run, SECTIONS)
    assert (gated.run_folder / "precision_gate.png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may compute in FP8")
def test_fp8_is_refused_without_a_gpu_before_anything_is_trained(runs):
    wide = ("model.hidden_size=64", "model.ffn_hidden_size=128", "model.num_heads=8", "precision.dtype=bf16")
    fp8 = ("precision.fp8=tensorwise", "precision.gate_steps=2")
    run = runs.train("fp8 without a GPU", *SMALL, *PACKED, *wide, *fp8)
    assert run.code == 2
    assert "precision.fp8 tensorwise with Transformer Engine not installed, no GPU" in run.said
    assert "set precision.fp8=none" in run.said and run.said.count("found:") == 1
    assert not (run.folder / "precision_gate" / "fp8" / "metrics.jsonl").exists()
    assert not (run.folder / "precision_gate" / "bf16").exists() and not (run.folder / "run.yaml").exists()
