"""Sweeps: every combination once, each in a folder whose name can be read and is a path."""

import pytest

from megatron_medx.errors import ConfigError
from megatron_medx.launch.sweep import Point, points


def folders(*sweeps, overrides=()):
    return [point.overrides[-1].removeprefix("run.folder=") for point in points("demo", overrides, sweeps)]


def test_without_a_sweep_there_is_one_run_as_it_is():
    assert points("demo", ["training.steps=5"], []) == [Point(("training.steps=5",))]


def test_every_combination_in_the_order_it_is_written():
    found = points("demo", ["training.steps=5"], ["optimizer.lr=1e-3,3e-4", "run.seed=1,2"])
    assert found[1].overrides == (
        "training.steps=5",
        "optimizer.lr=1e-3",
        "run.seed=2",
        "run.folder=runs/demo-lr=1e-3-seed=2",
    )
    assert [point.overrides[-1].rpartition("demo-")[2] for point in found] == [
        "lr=1e-3-seed=1",
        "lr=1e-3-seed=2",
        "lr=3e-4-seed=1",
        "lr=3e-4-seed=2",
    ]


def test_a_folder_that_is_given_is_the_beginning_of_all():
    assert folders("run.seed=1,2", overrides=["run.folder=runs/study"]) == ["runs/study-seed=1", "runs/study-seed=2"]


@pytest.mark.parametrize(
    ("sweeps", "names"),
    [
        (["data.path=/a/b,/a/c d"], ["path=a-b", "path=a-c-d"]),
        (["training.freeze=[vision,merger],vision"], ["freeze=vision-merger", "freeze=vision"]),
        (["training.freeze=[],vision"], ["freeze=none", "freeze=vision"]),
        (["optimizer.lr=1,2", "other.lr=3"], ["optimizer.lr=1-other.lr=3", "optimizer.lr=2-other.lr=3"]),
    ],
)
def test_names_are_safe_in_a_path_and_can_be_told_apart(sweeps, names):
    assert folders(*sweeps) == [f"runs/demo-{name}" for name in names]


@pytest.mark.parametrize(
    ("sweeps", "overrides", "message"),
    [
        (["run.seed"], [], "--sweep run.seed"),
        (["run.seed="], [], "--sweep run.seed="),
        (["run.seed=1,,2"], [], "section.field=a,b,c"),
        (["run.seed=1,1"], [], "two runs of the sweep would be runs/demo-seed=1"),
        (["data.path=a/b,a b"], [], "two runs of the sweep would be runs/demo-path=a-b"),
        (["run.seed=1", "run.seed=2"], [], "run.seed is set twice"),
        (["run.seed=1,2"], ["run.seed=3"], "run.seed is set twice"),
        (["run.folder=runs/a,runs/b"], [], "--sweep run.folder"),
    ],
)
def test_what_makes_no_sense_is_refused(sweeps, overrides, message):
    with pytest.raises(ConfigError, match=message):
        points("demo", overrides, sweeps)
