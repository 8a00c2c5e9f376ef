"""Our configuration in Megatron's words: every setting arrives in the namespace that Megatron's parser makes."""

import argparse
import inspect
import sys

import pytest

from megatron_medx.errors import ConfigError
from megatron_medx.recipes import RECIPES, get_recipe


@pytest.fixture(scope="module")
def parser():
    from megatron.training.arguments import add_megatron_arguments

    return add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))


def arguments_of(parser, config, tmp_path, **more):
    """(our settings, what Megatron's parser reads from their command line)."""
    from megatron_medx.training.megatron_args import command_line, settings

    options = {"resume": False, "use_cuda": False, "use_transformer_engine": False} | more
    ours = settings(config, folder=tmp_path, **options) | config.megatron
    return ours, parser.parse_args(command_line(parser, ours))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "gpu"])
def test_every_setting_arrives(parser, recipe, on_gpu, tmp_path):
    """Read back from Megatron's namespace, each setting has the value that we gave."""
    config = get_recipe(recipe)
    ours, read = arguments_of(parser, config, tmp_path, resume=on_gpu, use_cuda=on_gpu, use_transformer_engine=on_gpu)
    differing = {
        name: (value, getattr(read, name)) for name, value in ours.items() if value not in (None, getattr(read, name))
    }
    assert not differing


def test_any_other_megatron_argument_passes_through(parser, tmp_path):
    config = get_recipe("demo")
    config.megatron = {"overlap_grad_reduce": True, "exit_interval": 7, "bias_swiglu_fusion": False}
    _, read = arguments_of(parser, config, tmp_path)
    assert read.overlap_grad_reduce is True and read.exit_interval == 7 and read.bias_swiglu_fusion is False


@pytest.mark.parametrize("is_async", [False, True])
def test_saving_beside_training_is_what_megatron_makes_of_it(parser, tmp_path, is_async):
    """Without the persistent worker Megatron's own check turns it off, and its default strategy is not installable."""
    from megatron.training.arguments import validate_args

    config = get_recipe("demo")
    config.checkpoint.async_save = is_async
    _, read = arguments_of(parser, config, tmp_path)
    assert read.async_save is read.use_persistent_ckpt_worker is is_async
    assert read.async_strategy == ("mcore" if is_async else "nvrx"), "nvrx is Megatron's default, and not used"
    assert "if not args.use_persistent_ckpt_worker" in inspect.getsource(validate_args)


def test_unknown_megatron_arguments_are_refused_with_the_nearest_name(parser, tmp_path):
    config = get_recipe("demo")
    config.megatron = {"overlap_grad_reducee": True}
    with pytest.raises(ConfigError, match=r"overlap_grad_reducee(.|\n)*nearest.*: overlap_grad_reduce"):
        arguments_of(parser, config, tmp_path)


def test_a_value_that_a_switch_cannot_express_is_refused(parser, tmp_path):
    config = get_recipe("demo")
    config.megatron = {"overlap_grad_reduce": "sometimes"}
    with pytest.raises(ConfigError, match=r"megatron\.overlap_grad_reduce=sometimes"):
        arguments_of(parser, config, tmp_path)


def test_megatron_accepts_what_the_recipes_say(parser, tmp_path, monkeypatch):
    """Megatron's own validation, for the recipe that runs here."""
    from megatron_medx.parallel.cpu import enable_cpu_backend
    from megatron_medx.training.megatron_args import command_line, settings

    enable_cpu_backend()
    from megatron.training.arguments import parse_args, validate_args

    config = get_recipe("demo")
    ours = settings(config, folder=tmp_path, resume=False, use_cuda=False, use_transformer_engine=False)
    monkeypatch.setattr(sys, "argv", ["medx", *command_line(parser, ours)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = parse_args()
    validate_args(arguments, {})
    assert (arguments.data_parallel_size, arguments.sequence_parallel) == (1, True)
