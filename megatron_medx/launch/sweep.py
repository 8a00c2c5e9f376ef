"""Several runs of a recipe that differ in a few fields: every combination, each with a folder that says what it is.

--sweep optimizer.lr=1e-3,3e-4 --sweep run.seed=1,2
runs/demo-lr=1e-3-seed=1   runs/demo-lr=1e-3-seed=2   runs/demo-lr=3e-4-seed=1   runs/demo-lr=3e-4-seed=2
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_medx.errors import ConfigError

FOLDER_KEY = "run.folder"


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a launch."""

    overrides: tuple[str, ...]
    """`section.field=value`; in a sweep with run.folder at the end."""


def points(recipe: str, overrides: Sequence[str], sweeps: Sequence[str]) -> list[Point]:
    """Every combination of the swept values, in the order in which they are written; one point without a sweep.

    Args:
        recipe: by whose name folders begin, in runs/, unless the overrides have run.folder, which is then their base.
        overrides: of all points.
        sweeps: `section.field=a,b,c`; commas within brackets belong to a value.

    Raises:
        ConfigError: a sweep without values, of a key that is also overridden, swept twice or cannot be swept, or whose
            values make the same folder twice.
    """
    if not sweeps:
        return [Point(tuple(overrides))]
    read = [_read(sweep) for sweep in sweeps]
    swept, fixed = dict(read), {word.partition("=")[0].strip() for word in overrides}
    if FOLDER_KEY in swept:
        raise ConfigError(f"--sweep {FOLDER_KEY}", "other fields: these name the folders", f"set {FOLDER_KEY} once")
    for key in swept:
        if key in fixed or [other for other, _ in read].count(key) > 1:
            raise ConfigError(
                f"{key} is set twice", "a field in one place", f"write --sweep {key}=... once, all values"
            )
    base = next((word.partition("=")[2] for word in overrides if word.startswith(f"{FOLDER_KEY}=")), f"runs/{recipe}")
    kept = [word for word in overrides if not word.startswith(f"{FOLDER_KEY}=")]
    found = {}
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        folder = f"{base}-{_name(chosen)}"
        if folder in found:
            raise ConfigError(
                f"two runs of the sweep would be {folder}",
                "values that can be told apart in the name of a folder",
                "remove the one that stands twice, or launch it by itself with run.folder=...",
            )
        words = [f"{key}={value}" for key, value in chosen.items()]
        found[folder] = Point((*kept, *words, f"{FOLDER_KEY}={folder}"))
    return list(found.values())


def _read(sweep: str) -> tuple[str, list[str]]:
    key, equals, text = sweep.partition("=")
    values = [value.strip() for value in re.split(r",(?![^\[(]*[\])])", text)]
    if not equals or not all(values):
        raise ConfigError(
            f"--sweep {sweep}", "section.field=a,b,c", "write for instance --sweep optimizer.lr=1e-3,3e-4"
        )
    return key.strip(), values


def _name(chosen: dict[str, str]) -> str:
    """`lr=1e-3-seed=1`: last parts of keys, whole where two are the same; what a path should not hold is a dash."""
    lasts = [key.rpartition(".")[2] for key in chosen]
    parts = []
    for (key, value), last in zip(chosen.items(), lasts, strict=True):
        readable = re.sub(r"[^A-Za-z0-9.+_-]+", "-", value).strip("-.") or "none"
        parts.append(f"{key if lasts.count(last) > 1 else last}={readable}")
    return "-".join(parts)
