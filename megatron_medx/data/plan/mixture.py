"""What a run is fed with: one data folder, or several with their shares.

Comes in: `data.path`, a folder or a YAML file such as

    sources:
      - {path: corpora/reports, weight: 0.7, max_epochs: 2}
      - {path: /data/replay, weight: [[0, 0.3], [50e9, 0.1]]}
      - {path: corpora/reasoning, weight: [[0, 0.0], [50e9, 0.2]]}

with schedules in tokens of the run: linear between the knots, constant outside. Goes out: the sources, checked.

Weights are shares of tokens and sum to 1 at every knot; without any, shares are in proportion to the sources' tokens,
so that all end their epochs together. Paths are relative to the YAML file's folder.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import yaml

from megatron_medx.config.data import MIXTURE_SUFFIXES
from megatron_medx.config.problems import nearest
from megatron_medx.errors import DataError

KEYS = ("path", "weight", "max_epochs")

TOLERANCE = 1e-6
"""By which the weights may miss 1: thirds are written with some digits."""


@dataclass(frozen=True, slots=True)
class MixtureSource:
    """One data folder of a run."""

    path: Path
    weight: tuple[tuple[int, float], ...] | None = None
    """Knots (token of the run, share of tokens from there), ascending; None: in proportion to the tokens."""
    max_epochs: float | None = None
    """How often the source may be passed through; None: without end."""

    def weight_between(self, start_tokens: int, end_tokens: int) -> Fraction:
        """Mean weight over a stretch of the run, exact: the same on every machine.

        Example: knots (0, 0.0) and (100, 1.0) have a mean of 1/4 from token 0 to 50 and of 7/8 from 50 to 150.
        """
        assert self.weight is not None, "only weighted sources are asked"
        inside = [tokens for tokens, _ in self.weight if start_tokens < tokens < end_tokens]
        points = [start_tokens, *inside, end_tokens]
        values = [self.weight_at(tokens) for tokens in points]
        area = sum((values[i] + values[i + 1]) * (points[i + 1] - points[i]) / 2 for i in range(len(points) - 1))
        return area / (end_tokens - start_tokens)

    def weight_at(self, tokens: int) -> Fraction:
        """The weight at one token of the run, exact."""
        knots = self.weight
        if tokens <= knots[0][0]:
            return Fraction(knots[0][1])
        for (left, low), (right, high) in pairwise(knots):
            if tokens <= right:
                return Fraction(low) + (Fraction(high) - Fraction(low)) * (tokens - left) / (right - left)
        return Fraction(knots[-1][1])


def read_mixture(path: Path) -> tuple[MixtureSource, ...]:
    """The sources of a run.

    Args:
        path: a data folder, or a YAML file as above.

    Raises:
        DataError: there is no such folder or file, the mixture is empty, it has an unknown key, a weight or limit that
            is negative, knots that do not ascend, the same folder twice, or weights that do not sum to 1.
    """
    path = Path(path)
    if path.is_dir():
        return (MixtureSource(path),)
    if not path.is_file() or path.suffix not in MIXTURE_SUFFIXES:
        raise DataError(
            f"data.path={path} is {'no mixture' if path.exists() else 'not there'}",
            "a data folder that `medx data build` wrote, or a mixture of several, FILE.yaml",
            "medx data build SOURCE OUT, then data.path=OUT",
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no YAML file: {error}", "a mixture", "correct it, or name a data folder") from error
    entries = values.get("sources") if isinstance(values, dict) else None
    _check_keys(values if isinstance(values, dict) else {}, ("sources",), str(path))
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: sources = {entries}", "at least one source", "add `sources: [{path: FOLDER}]`")
    sources = tuple(_source(entry, f"{path}, source {number}", path.parent) for number, entry in enumerate(entries))
    _check_folders(sources, path)
    _check_weights(sources, path)
    return sources


def _source(entry: object, where: str, folder: Path) -> MixtureSource:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise DataError(f"{where}: {entry}", "{path: FOLDER, ...}", "give each source a path")
    _check_keys(entry, KEYS, where)
    max_epochs = entry.get("max_epochs")
    if max_epochs is not None:
        max_epochs = _number(max_epochs, f"{where}: max_epochs")
        if max_epochs == 0:
            raise DataError(f"{where}: max_epochs = 0", "a number above 0", "take the source out, or raise it")
    return MixtureSource(folder / entry["path"], _knots(entry.get("weight"), where), max_epochs)


def _knots(weight: object, where: str) -> tuple[tuple[int, float], ...] | None:
    """A number as one knot; a schedule as it is."""
    if weight is None:
        return None
    if not isinstance(weight, list):
        return ((0, _number(weight, f"{where}: weight")),)
    if not weight or not all(isinstance(knot, list) and len(knot) == 2 for knot in weight):
        raise DataError(f"{where}: weight = {weight}", "a number, or knots [[tokens, weight], ...]", "write it so")
    knots = tuple((int(_number(at, f"{where}: tokens")), _number(share, f"{where}: weight")) for at, share in weight)
    for (before, _), (after, _) in pairwise(knots):
        if after <= before:
            raise DataError(
                f"{where}: a knot at {after} tokens behind one at {before}", "ascending tokens", "sort them"
            )
    return knots


def _number(value: object, what: str) -> float:
    """A finite number from 0 on; YAML reads `50e9` as text."""
    try:
        number = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise DataError(f"{what} = {value}", "a number, not negative", "correct it in the mixture")
    return number


def _check_keys(entry: dict, known: tuple[str, ...], where: str) -> None:
    for key in entry:
        if key not in known:
            meant = nearest(str(key), known)
            do = f"did you mean {meant}?" if meant else "take it out"
            raise DataError(f"{where}: unknown key {key}", f"one of {', '.join(known)}", do)


def _check_folders(sources: tuple[MixtureSource, ...], path: Path) -> None:
    seen: dict[Path, int] = {}
    for number, source in enumerate(sources):
        if not source.path.is_dir():
            raise DataError(f"{path}, source {number}: no folder {source.path}", "a data folder", "correct its path")
        former = seen.setdefault(source.path.resolve(), number)
        if former != number:
            raise DataError(
                f"{path}: sources {former} and {number} are the same folder {source.path}",
                "each folder once",
                "join them, their weights added",
            )


def _check_weights(sources: tuple[MixtureSource, ...], path: Path) -> None:
    """Either no source has a weight, or they sum to 1 wherever one of them bends."""
    weighted = [source for source in sources if source.weight is not None]
    if not weighted:
        return
    if len(weighted) < len(sources):
        raise DataError(
            f"{path}: {len(weighted)} of {len(sources)} sources have a weight",
            "a weight for each, or for none",
            "give every source one, or take all out for shares in proportion to tokens",
        )
    for at in sorted({0, *(tokens for source in sources for tokens, _ in source.weight)}):
        weights = [float(source.weight_at(at)) for source in sources]
        if abs(sum(weights) - 1) > TOLERANCE:
            named = " + ".join(f"{weight:g}" for weight in weights)
            raise DataError(
                f"{path}: at token {at} the weights {named} sum to {sum(weights):g}", "1", "correct the weights"
            )
