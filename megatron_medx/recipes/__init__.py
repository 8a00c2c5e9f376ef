"""Complete runs as Python functions, in an explicit dict.

A recipe takes nothing and returns a RunConfig; the command line overrides single fields of it. Every size has four
stages, each starting from the run folder of the one before. Recipes of the published sizes ship a grid for each of
several numbers of GPUs (grids.py). tests/recipes checks and describes every recipe, on each of its grids.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from megatron_medx.config.problems import nearest
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError
from megatron_medx.recipes.cluster import CLUSTER_SIZES, cluster_run
from megatron_medx.recipes.demo import demo, demo_moe
from megatron_medx.recipes.grids import Grid, put_on_grid, shipped_grids
from megatron_medx.recipes.stages import align, midtrain, pretrain, sft

Recipe = Callable[[], RunConfig]


class Size(NamedTuple):
    """A network with its grids, which goes through all stages."""

    base: Recipe
    """The run that the stages change."""
    recipe_name: str
    """Pattern of the recipes' names."""
    data_path: str
    """Pattern of `data.path`."""
    summary: str
    """For `medx recipes`."""
    grids: dict[int, Grid]
    """Number of GPUs -> the grid that is shipped for it; empty: only that of the base run."""


SIZES = (
    Size(demo, "demo_{stage}", "data/demo", "The demo's model", {}),
    *(
        Size(
            partial(cluster_run, size),
            f"{{stage}}_{size}",
            "data/{stage}",
            f"Qwen3-VL-{published.published_name}, {published.gpus} GPUs",
            shipped_grids(size),
        )
        for size, published in CLUSTER_SIZES.items()
    ),
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

GRIDS_OF: dict[str, dict[int, Grid]] = {}
"""Name of a recipe -> number of GPUs -> the grid that is shipped for it; recipes without such grids are not in it."""


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
        _recipe_name = _size.recipe_name.format(stage=_name)
        RECIPES[_recipe_name] = _stage(_size, _name, _before)
        if _size.grids:
            GRIDS_OF[_recipe_name] = _size.grids
        _before = _recipe_name


def get_recipe(name: str, gpus: int | None = None) -> RunConfig:
    """Return a fresh configuration of the recipe, with its name in `run.recipe`.

    Args:
        name: of the recipe.
        gpus: take the grid that the recipe ships for so many; None for its own number.

    Raises:
        ConfigError: no recipe has this name, or it ships no grid for so many GPUs; the nearest ones are named.
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
    if gpus is not None:
        if gpus not in GRIDS_OF.get(name, {}):
            _refuse_gpus(name, gpus)
        put_on_grid(config, gpus, GRIDS_OF[name][gpus])
    return config


def nearest_shipped(name: str, gpus: int) -> list[int]:
    """The numbers of GPUs with a shipped grid next below and next above `gpus`, of those that there are."""
    shipped = sorted(GRIDS_OF.get(name, {}))
    return [
        *[number for number in shipped if number <= gpus][-1:],
        *[number for number in shipped if number > gpus][:1],
    ]


def _refuse_gpus(name: str, gpus: int) -> None:
    if name not in GRIDS_OF:
        raise ConfigError(
            f"{name} on {gpus} GPUs",
            "a recipe of a published size: this one ships no grids",
            f"set parallel.world_size={gpus} and the axes of parallel",
        )
    raise ConfigError(
        f"{name} on {gpus} GPUs",
        f"a number that it ships a grid for: {', '.join(map(str, sorted(GRIDS_OF[name])))}",
        f"take {' or '.join(map(str, nearest_shipped(name, gpus)))}, "
        f"or cut it yourself: parallel.world_size={gpus} and the axes of parallel",
    )
