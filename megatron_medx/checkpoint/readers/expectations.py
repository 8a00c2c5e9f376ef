"""The kinds of expectations that another program can have of a Hugging Face directory: the lines of the tables."""

from collections.abc import Callable
from dataclasses import dataclass

Sources = dict[str, str]
"""Reader -> `file:line` where it shows the expectation. A reader that is not named has no such expectation."""

Values = Callable[[str], object]
"""Gives the value at a path of config.json (`text_config.head_dim`), or of another JSON file of the directory
(`preprocessor_config.json:patch_size`); None where there is none."""


@dataclass(frozen=True, slots=True)
class Key:
    """A value that config.json must state."""

    paths: tuple[str, ...]
    """Where it may stand; the first is where Qwen's own directories on the hub have it."""
    kind: type
    sources: Sources
    only: tuple[object, ...] = ()
    """The values that are taken; empty leaves it open."""
    moe: bool | None = None
    """True: mixtures of experts alone; False: dense networks alone; None: both."""
    otherwise: str = "stops"
    """What the reader does without it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that the weights must hold."""

    name: str
    """`*` is the number of the layer or DeepStack level."""
    shape: str
    """A word a dimension: a product of digits and letters of SIZES."""
    sources: Sources
    moe: bool | None = None
    untied: bool = False
    """True: only where the output layer is not the embedding."""
    also: tuple[tuple[str, str], ...] = ()
    """(reader, another shape that it takes)."""


@dataclass(frozen=True, slots=True)
class Relation:
    """What must hold between values."""

    needed: str
    holds: Callable[[Values], bool]
    """Is asked only where all of `shown` are stated."""
    shown: tuple[str, ...]
    """Paths of the values that it is about."""
    sources: Sources
    moe: bool | None = None
    do: str = "check that config.json belongs to these weights"


@dataclass(frozen=True, slots=True)
class File:
    """A file that must lie beside the weights."""

    names: tuple[str, ...]
    """One of them is enough."""
    sources: Sources
    otherwise: str = "stops"
    """What the reader does without it."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token that config.json and tokenizer.json must give the same number."""

    text: str
    path: str
    """Where config.json states its id."""
    sources: Sources


def at(vllm: str, sglang: str, verl: str, transformers4: str = "", llamacpp: str = "") -> Sources:
    """Where the readers show an expectation; an empty place is a reader that does not have it."""
    found = {"vllm": vllm, "sglang": sglang, "verl": verl, "transformers4": transformers4, "llamacpp": llamacpp}
    return {reader: place for reader, place in found.items() if place}
