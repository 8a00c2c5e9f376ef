"""Collecting what is wrong, so that a person mends everything in one go.

Checks return `Problem`s instead of raising; `raise_problems` turns any number of them into one
error. One problem keeps its three parts as they are; several are numbered, each with its own
three parts. The error is a ParallelismError only when every problem is of the grid.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from megatron_medx.errors import ConfigError, MedxError, ParallelismError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, in the three parts of an error."""

    found: str
    """What there is, with names and numbers."""
    needed: str
    """What there must be."""
    do: str
    """The next thing to type or change."""
    of_the_grid: bool = False
    """True when ranks and axes are at fault, not the recipe."""


def raise_problems(problems: list[Problem], hint: str = "") -> None:
    """Raise one error that names every problem; return when there is none.

    Args:
        problems: what is wrong.
        hint: what would mend all of them at once; the message ends with it.

    Raises:
        ParallelismError: all problems are of the grid.
        ConfigError: any other mixture.
    """
    if not problems:
        return
    kind: type[MedxError] = ParallelismError if all(p.of_the_grid for p in problems) else ConfigError
    hint = f"; {hint}" if hint else ""
    if len(problems) == 1:
        raise kind(problems[0].found, problems[0].needed, problems[0].do + hint)
    entries = [
        f"  {number}. found:  {p.found}\n     needed: {p.needed}\n     do:     {p.do}"
        for number, p in enumerate(problems, start=1)
    ]
    raise kind(
        "\n".join([f"{len(problems)} problems", *entries]), "none of these", f"mend each, then start again{hint}"
    )


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the known name that `name` was most likely meant to be, or None when nothing is close.

    `paralel.tensor` -> `parallel.tensor`; a bare last part (`steps`) finds the key that ends with it
    when only one does (`training.steps`).
    """
    names = list(names)
    endings = [known for known in names if known.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if close:
        return close[0]
    if len(endings) == 1:
        return endings[0]
    close = difflib.get_close_matches(name, endings, n=1, cutoff=0.3)
    return close[0] if close else None
