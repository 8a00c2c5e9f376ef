"""Every shipped recipe passes its checks and describes itself; stages follow one another."""

import pytest

from megatron_medx.cli import main
from megatron_medx.config.checks import check
from megatron_medx.config.describe import describe
from megatron_medx.config.parameters import parameter_counts
from megatron_medx.errors import ConfigError
from megatron_medx.recipes import RECIPES, SIZES, STAGES, get_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, capsys):
    config = get_recipe(name)
    check(config)
    assert config.run.recipe == name
    assert main(["train", name, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == describe(config)


def test_recipes_are_listed_each_on_a_line(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert all(len(line) <= 125 for line in lines)
    known = (
        "midtrain_8b         Qwen3-VL-8B, 64 GPUs: all parts at the rates where pretraining ended, on reasoning data."
    )
    assert known in lines


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.summary)
def test_each_stage_starts_from_the_run_of_the_one_before(size):
    names = [size.recipe_name.format(stage=stage) for stage in STAGES]
    runs = [get_recipe(name) for name in names]
    assert [run.checkpoint.start_from for run in runs[1:]] == [str(run.run_folder) for run in runs[:-1]]
    assert runs[0].checkpoint.start_from == size.base().checkpoint.start_from
    assert all(run.model == runs[0].model for run in runs)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.summary)
def test_stages_differ_in_what_is_trained_at_which_rates(size):
    base = size.base().optimizer
    align, pretrain, midtrain, sft = (get_recipe(size.recipe_name.format(stage=stage)) for stage in STAGES)
    assert [run.training.freeze for run in (align, pretrain, midtrain, sft)] == [
        ("vision", "language"), (), (), ("vision",)
    ]  # fmt: skip
    assert [run.training.loss_average for run in (align, pretrain, midtrain, sft)] == [
        "sample", "token", "token", "sqrt"
    ]  # fmt: skip
    assert pretrain.optimizer == base
    assert midtrain.checkpoint.carry_optimizer and not sft.checkpoint.carry_optimizer
    assert (midtrain.optimizer.lr, midtrain.optimizer.schedule, midtrain.warmup_steps) == (base.min_lr, "constant", 0)
    if base.vision_lr:
        ratio = pytest.approx(base.vision_lr / base.lr)
        assert midtrain.optimizer.vision_lr / midtrain.optimizer.lr == ratio
    assert sft.optimizer.lr == pytest.approx(10 * base.min_lr) and sft.optimizer.vision_lr is None
    for run, share in ((align, 0.05), (sft, 0.1)):
        assert run.warmup_steps == max(1, round(share * run.training.steps))


def test_a_recipe_is_fresh_each_time():
    get_recipe("demo").model.vision.num_layers = 99
    assert get_recipe("demo").model.vision.num_layers != 99
    get_recipe("pretrain_8b", 256).parallel.tensor = 99
    assert get_recipe("pretrain_8b", 256).parallel.tensor != 99


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean pretrain_8b\?"):
        get_recipe("pretrain8b", 48)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("demo")])
def test_demos_are_small(name):
    assert sum(parameter_counts(get_recipe(name).model).values()) < 20e6


def test_demo_is_not_plain_data_parallel():
    config = get_recipe("demo")
    assert config.parallel.data < config.parallel.world_size
    assert (config.model.vision_start_token_id, config.model.image_token_id, config.model.vocab_size) == (
        4079,
        4082,
        4096,
    )
