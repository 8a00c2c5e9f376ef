"""What weights started from: the stages before, down to the Hugging Face directories at the beginning.

Read from the run.yaml of each stage and from the cards of Hugging Face directories, where they still lie. What is gone
or broken goes to a list of notes. What is told has no absolute path: folders have names.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from megatron_medx.config.checkpoint_folders import (
    CHECKPOINTS,
    RELEASE,
    RUN_FILE,
    is_hf_directory,
    weights_folder,
)
from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import CheckpointError, ConfigError

CARD_FILE = "README.md"
LICENSE_FIELDS = ("license", "license_name", "license_link")

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""A model's name on the hub."""

_HUB_CACHE = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")
"""Folder in the hub's cache that holds the snapshots of one model."""

_FOLDERS = re.compile(r"(?<![\w.~:/])/(?:[^\s/'\",]+/)*")
"""The folders in front of the last name of an absolute path."""


@dataclass(frozen=True, slots=True)
class Base:
    """A Hugging Face directory that weights started from, and what its own card states."""

    name: str
    """Its name on the hub where it lies in the hub's cache, else the folder's name."""
    base_models: tuple[str, ...] = ()
    """Names on the hub: its own, or else those that its card gives as its base."""
    license: dict[str, str] = field(default_factory=dict)
    """Fields of LICENSE_FIELDS in its card; none where it states none."""


def read_base(folder: Path, notes: list[str]) -> Base:
    """What a Hugging Face directory is called, and what its own card states."""
    in_cache = _HUB_CACHE.fullmatch(folder.absolute().parent.parent.name)
    repo = f"{in_cache['owner']}/{in_cache['name']}" if in_cache else None
    name, path = repo or folder.absolute().name, folder / CARD_FILE
    own = (repo,) if repo else ()
    if not path.is_file():
        return Base(name, own)
    try:
        stated = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError, UnicodeDecodeError) as error:
        notes.append(f"the card of {name} is not readable: {one_line(error)}")
        return Base(name, own)
    parents = stated.get("base_model") or []
    parents = [parents] if isinstance(parents, str) else parents
    inherited = tuple(parent for parent in parents if isinstance(parent, str) and _REPO_ID.fullmatch(parent))
    license_ = {key: stated[key] for key in LICENSE_FIELDS if isinstance(stated.get(key), str)}
    return Base(name, own or inherited, license_)


def without_folders(value: object) -> object:
    """A value of a configuration or a command with absolute paths cut down to their last name.

    Example: `data.path=/mnt/me/mixture.yaml` becomes `data.path=mixture.yaml`; relative paths stay as they are.
    """
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value


def place_name(path: Path) -> str:
    """`demo, step 240` of runs/demo/checkpoints/iter_0000240; for other folders their name."""
    parts = [part for part in path.absolute().parts if part != CHECKPOINTS]
    if parts[-1].startswith("iter_") and parts[-1][5:].isdecimal():
        return f"{parts[-2]}, step {int(parts[-1][5:]):,}"
    return parts[-2] if parts[-1] == RELEASE else parts[-1]


def read_run_file(path: Path, notes: list[str]) -> tuple[RunConfig | None, dict]:
    """Configuration (None for a converted checkpoint) and provenance."""
    try:
        plain = yaml.safe_load(path.read_text())
        provenance = plain.get("provenance") or {}
        run = None if set(plain) <= {"model", "provenance"} else read_run_yaml(path)
    except (OSError, ValueError, AttributeError, yaml.YAMLError, ConfigError) as error:
        notes.append(f"{RUN_FILE} of {place_name(path.parent)} is not readable: {one_line(error)}")
        return None, {}
    return run, provenance if isinstance(provenance, dict) else {}


def launched_in(run: RunConfig, root: Path) -> Path:
    """The folder that relative paths of a run start from, where the run still lies below it under its own name.

    Example: run.folder=runs/a and the root /data/runs/a/checkpoints give /data; a root that was moved gives the
    current folder.
    """
    named, place = Path(run.run.folder).parts, (root.parent if root.name == CHECKPOINTS else root).absolute().parts
    return Path(*place[: -len(named)]) if named and place[-len(named) :] == named else Path()


def trace_start(
    run: RunConfig | None, provenance: dict, notes: list[str], before: tuple[Path, ...]
) -> tuple[list[str], tuple[Base, ...]]:
    """The stages before, the nearest first, and the Hugging Face directories at their beginning.

    Args:
        run, provenance: of one checkpoint.
        notes: gets a sentence for each stage that is no longer there.
        before: folders with tensors that were already followed; the last is that of this checkpoint.
    """
    if run is not None:
        if not run.checkpoint.start_from:
            return ["seeded random weights"], ()
        return _stage(launched_in(run, before[-1].parent) / run.checkpoint.start_from, notes, before)
    entries = [entry for entry in provenance.get("averaged") or [] if isinstance(entry, dict)]
    averaged = [Path(str(entry.get("path"))) for entry in entries]
    words = str(provenance.get("command") or "").split()
    named = (word for before_it, word in pairwise(words) if before_it in ("to-megatron", "--vision-from"))
    parents = averaged or [Path(word) for word in named]
    if not parents:
        return [], ()
    found = [_stage(parent, notes, before) for parent in parents]
    if len(found) == 1:
        return found[0]
    joined = f"{'mean' if averaged else 'join'} of {'; '.join(stages[0] for stages, _ in found)}"
    # One parent of unknown origin leaves the whole unknown.
    bases = {base.name: base for _, bases in found for base in bases} if all(bases for _, bases in found) else {}
    return [joined], tuple(bases.values())


def _stage(path: Path, notes: list[str], before: tuple[Path, ...]) -> tuple[list[str], tuple[Base, ...]]:
    """One stage and those before it."""
    name = place_name(path)
    if is_hf_directory(path):
        base = read_base(path, notes)
        return [f"{base.name} (a Hugging Face directory)"], (base,)
    try:
        folder = weights_folder(path).absolute()
    except (CheckpointError, OSError):
        notes.append(f"{name}, which an earlier stage left, is not where it was: stages before it are not known")
        return [name], ()
    if folder in before:
        notes.append(f"{name} names itself as what it started from")
        return [name], ()
    run, provenance = read_run_file(folder.parent / RUN_FILE, notes)
    stages, bases = trace_start(run, provenance, notes, (*before, folder))
    if run is None:
        return [f"{place_name(folder)} (converted)", *stages], bases
    reached = f"{place_name(folder)} of {run.training.steps:,}"
    return [f"{reached} (recipe {run.run.recipe or 'not named'})", *stages], bases


def one_line(error: Exception) -> str:
    """An error as part of a sentence, without folders."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    return " ".join(str(without_folders(text)).split())
