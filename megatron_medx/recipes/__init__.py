"""Complete runs as Python functions, in an explicit dict.

A recipe takes nothing and returns a RunConfig; the command line overrides single fields of it. Every size has four
stages, each starting from the run folder of the one before. tests/recipes checks and describes every recipe.
"""

from collections.abc import Callable
from typing import NamedTuple

from megatron_medx.config.problems import nearest
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError
from megatron_medx.recipes.cluster import cluster_2b, cluster_4b, cluster_8b, cluster_32b
from megatron_medx.recipes.demo import demo, demo_moe
from megatron_medx.recipes.stages import align, midtrain, pretrain, sft

Recipe = Callable[[], RunConfig]


class Size(NamedTuple):
    """A network with its grid, which goes through all stages."""

    base: Recipe
    """The run that the stages change."""
    recipe_name: str
    """Pattern of the recipes' names."""
    data_path: str
    """Pattern of `data.path`."""
    summary: str
    """For `medx recipes`."""


SIZES = (
    Size(demo, "demo_{stage}", "data/demo", "The demo's model"),
    Size(cluster_2b, "{stage}_2b", "data/{stage}", "Qwen3-VL-2B, 16 GPUs"),
    Size(cluster_4b, "{stage}_4b", "data/{stage}", "Qwen3-VL-4B, 32 GPUs"),
    Size(cluster_8b, "{stage}_8b", "data/{stage}", "Qwen3-VL-8B, 64 GPUs"),
    Size(cluster_32b, "{stage}_32b", "data/{stage}", "Qwen3-VL-32B, 256 GPUs"),
)

STAGES = {
    "align": (align,),
    "pretrain": (pretrain,),
    "midtrain": (pretrain, midtrain),
    "sft": (pretrain, midtrain, sft),
}
"""Stages in the order of training -> the changes that make each of a base run."""

RECIPES: dict[str, Recipe] = {"demo": demo, "demo_moe": demo_moe}
"""Name on the command line -> recipe; its docstring's first line is what `medx recipes` says."""


def _stage(size: Size, stage: str, before: str) -> Recipe:
    """The recipe of a stage; it starts from the run of recipe `before`, or from what the base run starts from."""

    def recipe() -> RunConfig:
        config = size.base()
        for change in STAGES[stage]:
            config = change(config)
        config.data.path = size.data_path.format(stage=stage)
        if before:
            config.checkpoint.start_from = f"runs/{before}"
        return config

    task = STAGES[stage][-1].__doc__.splitlines()[0]
    recipe.__doc__ = f"{size.summary}: {task[0].lower()}{task[1:]}"
    return recipe


for _size in SIZES:
    _before = ""
    for _name in STAGES:
        RECIPES[_size.recipe_name.format(stage=_name)] = _stage(_size, _name, _before)
        _before = _size.recipe_name.format(stage=_name)


def get_recipe(name: str) -> RunConfig:
    """Return a fresh configuration of the recipe, with its name in `run.recipe`.

    Raises:
        ConfigError: no recipe has this name; the nearest one is named.
    """
    if name not in RECIPES:
        guess = nearest(name, RECIPES)
        raise ConfigError(
            f"unknown recipe {name}",
            "a name that `medx recipes` lists, or the path of a run.yaml",
            f"did you mean {guess}?" if guess else "see `medx recipes`",
        )
    config = RECIPES[name]()
    config.run.recipe = name
    return config
