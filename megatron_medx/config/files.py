"""run.yaml: the resolved configuration beside the checkpoints, and back.

Written first, read later: `medx train PATH/run.yaml run.folder=NEW` reproduces the run. The file holds every field, and
a `provenance` section (versions, commit, date, command) that reading ignores. Converters write and read
the `model` section alone. Reading is strict: an unknown key, a missing section or a value of the wrong
type stops it; a missing field takes its default, which is what a run before that field existed did.
"""

import dataclasses
import datetime
import importlib.metadata
import os
import subprocess
from pathlib import Path

import yaml

from megatron_medx.config.fields import field_types, from_plain, required_fields
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.overrides import unknown_key
from megatron_medx.config.problems import Problem, raise_problems
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError

LATER_SECTIONS = ("megatron", "survival")
"""Sections that a run.yaml may lack: they have come since, and without them a run is as with their defaults."""

MOVED = {"training.precision": "precision.dtype"}
"""Fields of earlier versions -> where they are now."""

PACKAGES = ("torch", "megatron-core", "transformers", "megatron-medx")
"""What provenance gives the versions of."""

COMMIT_FILE = "COMMIT"
"""Beside the package in a copy that `medx launch` made: the commit that it is of, where git would name another one."""


def write_run_yaml(config: RunConfig, path: Path | str, provenance: dict[str, object]) -> None:
    """Write the whole configuration to `path`, atomically, with a header that says how to reproduce the run."""
    plain = _plain(dataclasses.asdict(config))
    header = f"# Everything this run was. Reproduce it with: medx train {path} run.folder=NEW_FOLDER\n"
    _write(Path(path), header, {**plain, "provenance": _plain(provenance)})


def write_model_only(model: ModelConfig, path: Path | str, provenance: dict[str, object]) -> None:
    """Write the `model` section alone, for a checkpoint that was converted and never trained here."""
    header = "# The network of this checkpoint. It was converted, not trained: there is no run to reproduce.\n"
    _write(Path(path), header, {"model": _plain(dataclasses.asdict(model)), "provenance": _plain(provenance)})


def read_run_yaml(path: Path | str) -> RunConfig:
    """Return the configuration in a run.yaml, exactly as it was written.

    Raises:
        ConfigError: the file is missing, is not YAML, holds only a model, or has keys or values that do not fit.
    """
    plain = _read(path)
    if set(plain) == {"model"}:
        raise ConfigError(
            f"{path} holds only the model section",
            "a whole run.yaml, as training writes it; this one was written by a conversion",
            f"name a recipe and start from that checkpoint: checkpoint.start_from={Path(path).parent}",
        )
    _move(plain)
    problems: list[Problem] = []
    absent = [name for name in field_types(RunConfig) if name not in plain and name not in LATER_SECTIONS]
    if absent:
        problems.append(
            Problem(f"{path} without the section {', '.join(absent)}", "all sections", "restore the file as it was")
        )
    config = _build(RunConfig, plain, "", problems)
    raise_problems(problems)
    return config


def _move(plain: dict) -> None:
    """Bring fields of a file of an earlier version to where they are now."""
    for before, now in MOVED.items():
        (section, field), (new_section, new_field) = before.split("."), now.split(".")
        if isinstance(plain.get(section), dict) and field in plain[section]:
            plain.setdefault(new_section, {})[new_field] = plain[section].pop(field)


def read_model_section(path: Path | str) -> ModelConfig:
    """Return the model of a run.yaml, whether a run or a conversion wrote it.

    Raises:
        ConfigError: the file is missing, is not YAML, or its model section does not fit.
    """
    plain = _read(path)
    if not isinstance(plain.get("model"), dict):
        raise ConfigError(f"{path} without a model section", "a run.yaml of Megatron-MedX", "point to another file")
    problems: list[Problem] = []
    model = _build(ModelConfig, plain["model"], "model.", problems)
    raise_problems(problems)
    return model


def read_provenance(path: Path | str) -> dict[str, object]:
    """Return what `collect_provenance` wrote into a run.yaml; nothing where it has none."""
    found = yaml.safe_load(Path(path).read_text()).get("provenance")
    return found if isinstance(found, dict) else {}


def read_command(path: Path | str) -> list[str]:
    """Return the words of the command that wrote a run.yaml, as its provenance has them; none where it has none."""
    return str(read_provenance(path).get("command", "")).split()


def collect_provenance(command: list[str]) -> dict[str, object]:
    """Return versions, git commit, UTC date and command: what it takes to find out later what ran."""
    return {
        "command": " ".join(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of the checkout or the copy this package lies in, marked when files differ from it."""
    copied = Path(__file__).parents[2] / COMMIT_FILE
    if copied.is_file():
        return copied.read_text().strip()
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.stdout.strip() + (" with uncommitted changes" if status.stdout.strip() else "")


def _write(path: Path, header: str, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))
    os.replace(partial, path)  # a reader never sees half a file


def _read(path: Path | str) -> dict:
    try:
        plain = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "a run.yaml that can be read", "correct the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not YAML: {reason}", "a run.yaml", "restore the file as it was") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} holds no sections", "a run.yaml", "point to another file")
    plain.pop("provenance", None)
    return plain


def _plain(value: object) -> object:
    """Turn tuples into lists and paths into texts: what YAML can hold."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _build(cls: type, plain: dict, prefix: str, problems: list[Problem]) -> object | None:
    """Build a dataclass from a mapping; None, with the reasons added to `problems`, when it does not fit."""
    before = len(problems)
    kinds, values = field_types(cls), {}
    problems += [unknown_key(f"{prefix}{name}") for name in plain if name not in kinds]
    for name, kind in kinds.items():
        key = prefix + name
        if name not in plain:
            if name in required_fields(cls):
                problems.append(Problem(f"no {key}", f"{key}: it has no default", f"add {key}"))
        elif dataclasses.is_dataclass(kind) and isinstance(plain[name], dict):
            values[name] = _build(kind, plain[name], f"{key}.", problems)
        else:
            try:
                values[name] = from_plain(plain[name], kind)
            except ValueError as error:
                problems.append(Problem(f"{key}: {plain[name]!r}", f"{key} is {error}", f"change {key}"))
    return cls(**values) if len(problems) == before else None
