"""Overrides: every type, every refusal, all refusals together."""

import pytest

from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.values import value_of
from megatron_medx.errors import ConfigError
from megatron_medx.recipes import get_recipe


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training.steps=5", "training.steps", 5),
        ("parallel.tensor=2", "parallel.tensor", 2),
        ("model.vision.hidden_size=64", "model.vision.hidden_size", 64),
        ("data.packing=true", "data.packing", True),
        ("data.packing=False", "data.packing", False),
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("optimizer.vision_lr=none", "optimizer.vision_lr", None),
        ("optimizer.vision_lr=3e-5", "optimizer.vision_lr", 3e-5),
        ("training.freeze=vision,merger", "training.freeze", ("vision", "merger")),
        ("training.freeze=", "training.freeze", ()),
        ("training.freeze=[vision, merger]", "training.freeze", ("vision", "merger")),
        ("model.mrope_section=8,4,4", "model.mrope_section", (8, 4, 4)),
        ("model.vision.deepstack_layers=()", "model.vision.deepstack_layers", ()),
        ("run.folder=/runs/a=b", "run.folder", "/runs/a=b"),
        ("run.folder=", "run.folder", ""),
    ],
)
def test_values_take_the_type_of_their_field(text, key, value):
    changed = value_of(apply_overrides(get_recipe("demo"), [text]), key)
    assert changed == value
    assert type(changed) is type(value)


def test_the_given_configuration_stays_as_it_was():
    config = get_recipe("demo")
    apply_overrides(config, ["model.vision.hidden_size=64", "megatron.x=1"])
    assert config == get_recipe("demo")


def test_the_last_of_two_wins():
    assert apply_overrides(get_recipe("demo"), ["training.steps=5", "training.steps=6"]).training.steps == 6


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("megatron.overlap_grad_reduce=true", "overlap_grad_reduce", True),
        ("megatron.overlap-grad-reduce=true", "overlap_grad_reduce", True),
        ("megatron.manual_gc_interval=10", "manual_gc_interval", 10),
        ("megatron.loss_scale=1e-4", "loss_scale", 1e-4),
        ("megatron.recompute_modules=[core_attn, mlp]", "recompute_modules", ["core_attn", "mlp"]),
        ("megatron.wandb_project=medx", "wandb_project", "medx"),
    ],
)
def test_megatron_names_pass_through(text, name, value):
    assert apply_overrides(get_recipe("demo"), [text]).megatron == {name: value}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("training.steps", "without '='"),
        ("training.steps=5.5", "training.steps is a whole number"),
        ("training.steps=", "training.steps is a whole number"),
        ("optimizer.lr=fast", "optimizer.lr is a number"),
        ("optimizer.lr=nan", "optimizer.lr is a number"),
        ("optimizer.vision_lr=off", "a number, or none"),
        ("data.packing=1", "true or false"),
        ("model.mrope_section=8,8", "3 whole numbers, separated by commas"),
        ("model.vision.deepstack_layers=a", "a list of whole numbers"),
        ("parallel=2", "parallel is a section"),
        ("model.vision=2", "model.vision is a section"),
        ("megatron=2", "megatron is a section"),
        ("megatron.a.b=2", "one Megatron argument"),
        ("megatron.x=[1", "a YAML value"),
        ("paralel.tensor=2", "did you mean parallel.tensor?"),
        ("parallel.tensor_size=2", "did you mean parallel.tensor?"),
        ("train.steps=2", "did you mean training.steps?"),
        ("steps=2", "did you mean training.steps?"),
        ("tensor=2", "did you mean parallel.tensor?"),
        ("model.vison.hidden_size=2", "did you mean model.vision.hidden_size?"),
        ("parallel.tensor_model_parallel_size=2", "did you mean parallel.tensor?"),
        ("global-batch-size=2", "did you mean training.global_batch_rows?"),
        ("zzz.qqq=2", "section is one of run, model, data, parallel"),
    ],
)
def test_refusals_name_the_key_and_the_remedy(text, match):
    with pytest.raises(ConfigError, match=match.replace("?", r"\?")):
        apply_overrides(get_recipe("demo"), [text])


def test_all_refusals_come_in_one_error():
    with pytest.raises(ConfigError) as caught:
        apply_overrides(get_recipe("demo"), ["paralel.tensor=2", "training.steps=x", "data.packing"])
    message = str(caught.value)
    assert "3 problems" in message
    for part in ("parallel.tensor", "training.steps is a whole number", "without '='"):
        assert part in message
