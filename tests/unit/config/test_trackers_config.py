"""Fields that name trackers, and packages that a machine lacks."""

import importlib.util

import pytest

from megatron_medx.config.checks import check, check_files
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.errors import ConfigError
from megatron_medx.recipes import get_recipe


def demo(*words):
    return apply_overrides(get_recipe("demo"), list(words))


@pytest.mark.parametrize(
    ("words", "found", "do"),
    [
        (["log.wandb_project=team/med"], "log.wandb_project is 'team/med'", "change log.wandb_project"),
        (["log.mlflow_uri=mlruns"], "log.mlflow_uri is 'mlruns'", "log.mlflow_uri=file:mlruns"),
        (["log.mlflow_uri=file:x", "log.mlflow_experiment="], "log.mlflow_experiment is empty", "NAME"),
        (["log.ranks_every_steps=-1"], "log.ranks_every_steps is -1", "change log.ranks_every_steps"),
    ],
)
def test_what_a_tracker_would_refuse_is_refused_at_once(words, found, do):
    with pytest.raises(ConfigError) as error:
        check(demo(*words))
    assert found in str(error.value) and do in str(error.value)


@pytest.mark.parametrize("uri", ["file:mlruns", "https://mlflow.example.org", "http://host:5000", "sqlite:///x.db"])
def test_what_mlflow_takes_is_taken(uri):
    check(demo(f"log.mlflow_uri={uri}", "log.wandb_project=med-x"))


@pytest.mark.parametrize(
    ("word", "package", "install"),
    [
        ("log.tensorboard=true", "tensorboard", "pip install tensorboard; or set log.tensorboard=false"),
        ("log.wandb_project=p", "wandb", "pip install wandb; or set log.wandb_project="),
        ("log.mlflow_uri=file:x", "mlflow", "pip install mlflow-skinny; or set log.mlflow_uri="),
    ],
)
def test_a_package_that_is_missing_is_told_before_work_starts(word, package, install, tiny_run, monkeypatch):
    there = importlib.util.find_spec
    config = apply_overrides(tiny_run, [word])
    check_files(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else there(name))
    with pytest.raises(ConfigError) as error:
        check_files(config)
    assert f"no package {package} here" in str(error.value) and install in str(error.value)
