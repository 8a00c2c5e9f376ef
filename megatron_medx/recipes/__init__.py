"""Complete runs as Python functions, in an explicit dict.

A recipe takes nothing and returns a RunConfig; the command line overrides single fields of it. Recipes
that differ in little call one another. tests/recipes checks and describes every one.
"""

from collections.abc import Callable

from megatron_medx.config.problems import nearest
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError
from megatron_medx.recipes.demo import demo
from megatron_medx.recipes.pretrain import pretrain_2b, pretrain_4b, pretrain_8b, pretrain_32b

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "demo": demo,
    "pretrain_2b": pretrain_2b,
    "pretrain_4b": pretrain_4b,
    "pretrain_8b": pretrain_8b,
    "pretrain_32b": pretrain_32b,
}
"""Name on the command line -> recipe."""


def get_recipe(name: str) -> RunConfig:
    """Return a fresh configuration of the recipe, with its name in `run.recipe`.

    Raises:
        ConfigError: no recipe has this name; the nearest one is named.
    """
    if name not in RECIPES:
        guess = nearest(name, RECIPES)
        raise ConfigError(
            f"unknown recipe {name}",
            f"one of {', '.join(RECIPES)}, or the path of a run.yaml",
            f"did you mean {guess}?" if guess else "see `medx recipes`",
        )
    config = RECIPES[name]()
    config.run.recipe = name
    return config
