"""What subcommands share: how they are added, and how words become sizes, counts, pairs and configurations."""

import argparse
import re
from collections.abc import Callable

from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError


def add_command(
    commands, name: str, run: Callable[[argparse.Namespace], int], summary: str, **options: object
) -> argparse.ArgumentParser:
    """Add a subcommand that `run` carries out."""
    command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", **options)
    command.set_defaults(run=run)
    return command


def configuration(name: str) -> RunConfig:
    """The RunConfig of a recipe, or of a run.yaml when the name looks like a path."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
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
