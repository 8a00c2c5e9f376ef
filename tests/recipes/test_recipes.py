"""Every shipped recipe passes its checks, describes itself, and has the size it claims."""

import pytest

from megatron_medx.cli import main
from megatron_medx.config.checks import check
from megatron_medx.config.describe import describe
from megatron_medx.config.memory import worst_rank
from megatron_medx.config.parameters import parameter_counts
from megatron_medx.errors import ConfigError
from megatron_medx.recipes import RECIPES, get_recipe
from megatron_medx.recipes.sizes import qwen3_vl_2b, qwen3_vl_4b, qwen3_vl_8b, qwen3_vl_32b


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, capsys):
    config = get_recipe(name)
    check(config)
    assert config.run.recipe == name
    assert main(["train", name, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == describe(config)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("pretrain")])
def test_cluster_recipes_fit_80_gigabytes_by_estimate(name):
    assert sum(worst_rank(get_recipe(name)).values()) < 72e9  # the rest is for CUDA, NCCL and fragments


def test_a_recipe_is_fresh_each_time():
    get_recipe("demo").model.vision.num_layers = 99
    assert get_recipe("demo").model.vision.num_layers != 99


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean pretrain_8b\?"):
        get_recipe("pretrain8b")


@pytest.mark.parametrize(
    ("size", "billions"), [(qwen3_vl_2b, 2.13), (qwen3_vl_4b, 4.44), (qwen3_vl_8b, 8.77), (qwen3_vl_32b, 33.4)]
)
def test_sizes_have_the_published_totals(size, billions):
    """The totals of the four published checkpoints to three digits, from memory: no hub here to ask."""
    total = sum(parameter_counts(size()).values()) / 1e9
    assert float(f"{total:.3g}") == billions


def test_demo_is_small_and_not_plain_data_parallel():
    config = get_recipe("demo")
    assert sum(parameter_counts(config.model).values()) < 20e6
    assert config.parallel.data < config.parallel.world_size
    assert (config.model.vision_start_token_id, config.model.image_token_id, config.model.vocab_size) == (
        4079,
        4082,
        4096,
    )
