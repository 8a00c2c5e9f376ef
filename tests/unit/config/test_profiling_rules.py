"""What `training.profile` may name, and what only a GPU can record."""

import pytest

from megatron_medx.config.checks import check
from megatron_medx.config.files import read_run_yaml, write_run_yaml
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.profiling import gpu_recording_problems, profiled_steps
from megatron_medx.errors import ConfigError
from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder.same_run import changes


def run_with(*words):
    return apply_overrides(get_recipe("demo"), ["training.steps=60", *words])


@pytest.mark.parametrize(
    ("asked", "found", "do"),
    [
        ("3", "training.profile '3'", "set training.profile=10:12"),
        ("3:4:5", "training.profile '3:4:5'", "set training.profile=10:12"),
        ("0:3", "training.profile 0:3, training.steps 60", "set training.profile=10:12"),
        ("5:4", "training.profile 5:4, training.steps 60", "set training.profile=10:12"),
        ("58:61", "training.profile 58:61, training.steps 60", "set training.profile=10:12"),
        ("20:40", "training.profile 20:40, 21 steps", "set training.profile=20:22"),
    ],
)
def test_steps_that_cannot_be_profiled(asked, found, do):
    with pytest.raises(ConfigError) as error:
        check(run_with(f"training.profile={asked}"))
    assert error.value.found == found and error.value.do == do


@pytest.mark.parametrize(("asked", "steps"), [("1:1", (1, 1)), ("20:39", (20, 39)), ("60:60", (60, 60))])
def test_steps_that_can(asked, steps, tmp_path):
    """Also out of a run.yaml, where `20:39` without quotes would be a number of base 60."""
    config = run_with(f"training.profile={asked}")
    check(config)
    write_run_yaml(config, tmp_path / "run.yaml", {})
    assert profiled_steps(read_run_yaml(tmp_path / "run.yaml")) == steps


def test_what_only_a_gpu_records():
    problems = list(gpu_recording_problems(run_with("training.nvtx=true", "log.memory_history=true")))
    assert [problem.found.split()[0] for problem in problems] == ["training.nvtx", "log.memory_history"]
    assert [problem.do for problem in problems] == ["set training.nvtx=false", "set log.memory_history=false"]
    assert not list(gpu_recording_problems(run_with("training.profile=2:3")))


def test_a_run_that_goes_on_may_be_profiled():
    assert not changes(run_with(), run_with("training.profile=2:3", "training.nvtx=true", "log.memory_history=true"))
