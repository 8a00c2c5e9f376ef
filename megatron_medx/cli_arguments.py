"""What subcommands share: how they are added, and how words become sizes, counts, pairs and configurations."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError


def add_command(
    commands, name: str, run: Callable[[argparse.Namespace], int], summary: str, **options: object
) -> argparse.ArgumentParser:
    """Add a subcommand that `run` carries out."""
    command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", **options)
    command.set_defaults(run=run)
    return command


def is_path(name: str) -> bool:
    """Whether a run.yaml is meant, not the name of a recipe."""
    return name.endswith((".yaml", ".yml")) or "/" in name


def configuration(name: str) -> RunConfig:
    """The RunConfig of a recipe, or of a run.yaml when the name looks like a path."""
    if is_path(name):
        from megatron_medx.config.files import read_run_yaml

        return read_run_yaml(name)
    if "=" in name:
        raise ConfigError(
            f"{name} where the recipe is expected",
            "a recipe or a run.yaml first, then overrides",
            f"write for instance medx train demo {name}",
        )
    from megatron_medx.recipes import get_recipe

    return get_recipe(name)


def configured(
    name: str,
    overrides: Sequence[str],
    ranks: int | None,
    former: Callable[[RunConfig], RunConfig | None] = lambda config: None,
) -> tuple[RunConfig, str]:
    """A recipe or a run.yaml with overrides, on the grid that the recipe ships for a number of ranks.

    A run that goes on keeps the grid that it has: elastic runs change their replicas alone (job/elastic.py). So does a
    run whose `parallel` section is stated in an override or in a run.yaml. `parallel.world_size` is left to the caller.

    Args:
        name: a recipe or the path of a run.yaml.
        overrides: `section.field=value`.
        ranks: that will be started; None for the recipe's own number.
        former: from the configuration as asked for to that of the run in its folder, None where it is a new run.

    Returns:
        The configuration, and what to say of its grid; nothing where the number of ranks chose none.

    Raises:
        ConfigError: an unknown recipe or override, an unreadable file.
    """
    from megatron_medx.config.overrides import apply_overrides

    asked = apply_overrides(configuration(name), list(overrides))
    if is_path(name) or any(word.strip().startswith("parallel.") for word in overrides):
        return asked, ""
    from megatron_medx.recipes import GRIDS_OF, get_recipe, nearest_shipped

    shipped = GRIDS_OF.get(name, {})
    if shipped and (before := former(asked)) is not None and before.run.recipe == name:
        return apply_overrides(_on_grid_of(configuration(name), before), list(overrides)), ""
    if not shipped or ranks is None:
        return asked, ""
    if ranks in shipped:
        return apply_overrides(get_recipe(name, ranks), list(overrides)), f"as {name} ships it for {ranks} GPUs"
    others = " and ".join(map(str, nearest_shipped(name, ranks)))
    return asked, f"that of {asked.parallel.world_size} GPUs: {name} ships none for {ranks}, but for {others}"


def _on_grid_of(config: RunConfig, other: RunConfig) -> RunConfig:
    """The run on the grid of another one, with what that recomputes."""
    recomputed = {key: getattr(other.training, key) for key in ("recompute", "recompute_vision")}
    return replace(config, parallel=replace(other.parallel), training=replace(config.training, **recomputed))


def read_pairs(text: str) -> dict[str, str]:
    """Read a=1,b=2."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name and value for name, _, value in pairs):
        raise argparse.ArgumentTypeError(f"found {text}, needed NAME=VALUE,NAME=VALUE")
    return {name: value for name, _, value in pairs}


def read_bytes(text: str) -> int:
    """Read a size such as 50MB or 5GB (powers of ten, as on the hub)."""
    size = re.fullmatch(r"(\d+)(KB|MB|GB)", text.upper())
    if size is None:
        raise argparse.ArgumentTypeError(f"found {text}, needed a size such as 50MB or 5GB")
    number, unit = size.groups()
    return int(number) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[unit]


def read_count(text: str) -> int:
    """Read a number of things."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"found {text}, needed a number from 1 on")
    return int(text)
