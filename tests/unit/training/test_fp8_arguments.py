"""FP8 in Megatron's words: its own parser and TransformerConfig take what we say, for the decoder and for the tower."""

import argparse
import sys

import pytest

from megatron_medx.config.memory import worst_rank
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.precision import FP8_RECIPES, Fp8Machine
from megatron_medx.errors import ConfigError, ParallelismError
from megatron_medx.recipes import get_recipe

ROWS = ("precision.dtype=bf16", "data.seq_len_tokens=1024")


def run_of(*words):
    return apply_overrides(get_recipe("demo"), [*ROWS, *(f"precision.{word}" for word in words)])


@pytest.fixture(scope="module")
def megatron():
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()


def read_back(config, tmp_path):
    """Our settings as Megatron's parser reads them from their command line."""
    from megatron.training.arguments import add_megatron_arguments

    from megatron_medx.training.megatron_args import command_line, settings

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    ours = settings(config, folder=tmp_path, resume=False, use_cuda=True, use_transformer_engine=True)
    return ours, parser.parse_args(command_line(parser, ours))


@pytest.mark.parametrize("fp8", FP8_RECIPES)
def test_a_recipe_arrives(megatron, fp8, tmp_path):
    ours, read = read_back(run_of(f"fp8={fp8}"), tmp_path)
    assert {name: getattr(read, name) for name, value in ours.items() if value is not None} == {
        name: value for name, value in ours.items() if value is not None
    }
    assert (read.fp8, read.fp8_recipe) == ("e4m3" if fp8 == "blockwise" else "hybrid", fp8)
    assert not read.fp8_param_gather and not read.first_last_layers_bf16
    assert (read.fp8_amax_history_len, read.fp8_amax_compute_algo) == (1024, "max")


def test_layers_in_bf16_arrive(megatron, tmp_path):
    _, read = read_back(run_of("fp8=tensorwise", "bf16_last_layers=2"), tmp_path)
    assert read.first_last_layers_bf16
    assert (read.num_layers_at_start_in_bf16, read.num_layers_at_end_in_bf16) == (0, 2)


def test_a_run_in_bf16_has_no_word_of_fp8(megatron, tmp_path):
    ours, read = read_back(run_of("bf16_first_layers=1"), tmp_path)
    assert not [name for name in ours if "fp8" in name or "in_bf16" in name] and read.fp8 is None


def test_megatron_makes_a_configuration_of_it(megatron, tmp_path, monkeypatch):
    """Its own validation and derivation, as far as they go without a GPU: no kernel is asked for."""
    from megatron.core.fp8_utils import is_first_last_bf16_layer
    from megatron.training.arguments import core_transformer_config_from_args, parse_args, validate_args

    from megatron_medx.training.megatron_args import command_line, settings

    config = run_of("fp8=tensorwise", "bf16_first_layers=1", "bf16_last_layers=1")
    config.parallel.world_size = config.parallel.tensor = 1
    ours = settings(config, folder=tmp_path, resume=False, use_cuda=False, use_transformer_engine=False)
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    monkeypatch.setattr(sys, "argv", ["medx", *command_line(parser, ours)])
    monkeypatch.setenv("WORLD_SIZE", "1")
    arguments = parse_args()
    validate_args(arguments, {})
    derived = core_transformer_config_from_args(arguments)
    assert (derived.fp8, derived.fp8_recipe, derived.fp8_param) == ("hybrid", "tensorwise", False)
    layers = range(derived.num_layers)
    assert [layer for layer in layers if is_first_last_bf16_layer(derived, layer)] == [0, derived.num_layers - 1]


def decoder_in_fp8(fp8, **more):
    from megatron_medx.models.megatron_config import decoder_config

    return decoder_config(
        get_recipe("demo").model, bf16=True, fp8=FP8_RECIPES[fp8].number_format, fp8_recipe=fp8, **more
    )


def test_the_tower_computes_in_bf16_unless_asked(megatron):
    from megatron.core.fp8_utils import is_first_last_bf16_layer

    from megatron_medx.models.megatron_config import tower_config

    model = get_recipe("demo").model
    ends = {"first_last_layers_bf16": True, "num_layers_at_start_in_bf16": 1, "num_layers_at_end_in_bf16": 1}
    decoder = decoder_in_fp8("tensorwise", **ends)
    assert tower_config(model, decoder).fp8 is None
    tower = tower_config(model, decoder, in_fp8=True)
    assert (tower.fp8, tower.fp8_recipe) == ("hybrid", "tensorwise")
    assert not any(is_first_last_bf16_layer(tower, layer) for layer in range(tower.num_layers))
    assert is_first_last_bf16_layer(decoder, 0), "the decoder's own configuration is as it was"


def test_megatron_refuses_delayed_scaling_with_layers_in_bf16(megatron):
    """So the rule in config/precision.py has its reason."""
    with pytest.raises(ValueError, match="Delayed scaling does not support first / last layer in BF16"):
        decoder_in_fp8("delayed", first_last_layers_bf16=True)


def test_megatron_refuses_more_layers_in_bf16_than_an_equal_stage_holds(megatron):
    with pytest.raises(ValueError, match="num_layers_at_end_in_bf16"):
        decoder_in_fp8(
            "tensorwise",
            first_last_layers_bf16=True,
            num_layers_at_end_in_bf16=3,
            pipeline_model_parallel_size=2,
            pipeline_dtype="bf16",
        )


def test_a_rank_without_gpu_or_engine_refuses_fp8(megatron, monkeypatch):
    from megatron_medx.training import machine

    monkeypatch.setattr(machine, "fp8_machine", lambda: Fp8Machine(None, None, "13.0"))
    with pytest.raises(ConfigError, match=r"precision\.fp8 tensorwise with Transformer Engine not installed, no GPU"):
        machine.check_machine(run_of("fp8=tensorwise"))
    machine.check_machine(run_of())


def test_a_grid_that_the_gpu_cannot_hold_is_refused(megatron, monkeypatch):
    from megatron_medx.training import machine

    needed = sum(worst_rank(run_of()).values())
    monkeypatch.setattr(machine, "gpu_memory_bytes", lambda: needed - 1)
    with pytest.raises(ParallelismError, match="GB estimated on the worst rank"):
        machine.check_machine(run_of())
    monkeypatch.setattr(machine, "gpu_memory_bytes", lambda: needed)
    machine.check_machine(run_of())


def test_this_machine_is_looked_at(megatron):
    import torch

    from megatron_medx.training.machine import fp8_machine

    found = fp8_machine()
    assert found.cuda == torch.version.cuda and (found.capability is None) == (not torch.cuda.is_available())
