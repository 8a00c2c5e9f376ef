"""What a Hugging Face directory or a Megatron checkpoint is: network, run, every tensor; nothing is changed.

Headers and run.yaml say all but the norms; those read one tensor at a time. That the tensors are exactly those of the
configuration is checked first, so what is reported is a whole network. `inspection_lines.py` makes the text.
"""

import dataclasses
import json
import math
from pathlib import Path

import yaml

from megatron_medx.checkpoint.hugging_face.hf_config import family_of
from megatron_medx.checkpoint.hugging_face.hf_directory import HfDirectory
from megatron_medx.checkpoint.layout.parts import PARTS, stored_part
from megatron_medx.checkpoint.layout.rules import Binding, bindings
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.megatron_files.run_state import run_state
from megatron_medx.checkpoint.reports.tensor_norms import norms
from megatron_medx.checkpoint.weights import Weights, checked_bindings, open_weights
from megatron_medx.checkpoint.writing.progress import byte_progress
from megatron_medx.config.checkpoint_folders import CONFIG_FILE, RUN_FILE, step_of
from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.parameters import part_counts
from megatron_medx.config.run import RunConfig

HF_DIRECTORY = "Hugging Face directory"
CHECKPOINT = "Megatron checkpoint"
RELEASE_CHECKPOINT = "converted Megatron checkpoint (a release: no run has trained it)"


def inspect(path: str | Path, *, with_norms: bool = False) -> dict:
    """Say what lies at a path, as a dictionary that JSON can hold.

    Args:
        path: a Hugging Face directory, a checkpoint root, a run folder (its newest step is taken) or an iter_ folder.
        with_norms: True also reads every tensor, one at a time.
    Returns:
        `kind`; `folder` (the one with the tensors); `step` (None without one); `only` (the part that an export holds
        alone, else None); `network` (`architecture`, `sizes`: the fields of ModelConfig, `parameters` of the whole by
        part); `run` (recipe, data, steps, precision, start: those of the newest launch; None where no run.yaml of a run
        is beside it); `grid` and `consumed_rows` (of the launch that saved this very step; None where none did);
        `provenance` (what wrote it: command, date, commit, versions; what is known); `has_optimizer`; `files` (`num`,
        `bytes` on disk, `ranks` that wrote; None for a Hugging Face directory); `tensors` (each with `name`,
        `other_names` in the other format, `part`, `shape`, `dtype`, `bytes` and, with norms, the fields of Norms);
        `totals` (part -> `tensors`, `parameters`, `bytes`).
    Raises:
        CheckpointError: it is neither, damaged or unfinished, or lacks a tensor; the message names what lacks.
        ConfigError: its run.yaml cannot be read.
    """
    weights, bound, only = open_with_bindings(Path(path))
    tensors = _tensors(weights, bound)
    if with_norms:
        with byte_progress("inspect", sum(entry["bytes"] for entry in tensors)) as advance:
            for entry in tensors:
                entry |= dataclasses.asdict(norms(weights.read(entry["name"])))
                advance(entry["bytes"])
    return {
        **_origin(weights),
        "only": only,
        "network": _network(weights.model),
        "files": _files(weights.folder),
        "tensors": tensors,
        "totals": {part: _totals([one for one in tensors if one["part"] == part]) for part in PARTS},
    }


def read_run(weights: Weights) -> RunConfig | None:
    """The configuration of the run that wrote a checkpoint; None for a converted one or a Hugging Face directory.

    Raises:
        ConfigError: its run.yaml cannot be read.
    """
    if not isinstance(weights, MegatronCheckpoint):
        return None
    path = weights.root / RUN_FILE
    return None if set(yaml.safe_load(path.read_text())) <= {"model", "provenance"} else read_run_yaml(path)


def open_with_bindings(path: Path) -> tuple[Weights, tuple[Binding, ...], str | None]:
    """Open weights, checked to be whole or exactly the part that they say they are.

    Returns:
        The weights, the tensor groups that are stored, and the name of the part (None for a whole network).
    Raises:
        CheckpointError: no weights, or other tensors than their configuration describes.
    """
    weights = open_weights(path)
    only = stored_part(weights.folder) if isinstance(weights, HfDirectory) else None
    return weights, checked_bindings(weights, only), only


def part_of_keys(model: ModelConfig) -> dict[str, str]:
    """Megatron key -> the part of the network (vision, merger, language) that its rule belongs to."""
    return {one.megatron_key: part for part, rules in PARTS.items() for one in bindings(model, rules)}


def _origin(weights: Weights) -> dict:
    """What kind of weights these are, and who wrote them."""
    if not isinstance(weights, MegatronCheckpoint):
        config = json.loads((weights.folder / CONFIG_FILE).read_text())
        version = config.get("transformers_version")
        return {
            "kind": HF_DIRECTORY,
            "folder": str(weights.folder),
            "step": None,
            "run": None,
            "grid": None,
            "consumed_rows": None,
            "provenance": {"versions": {"transformers": version}} if version else {},
            "has_optimizer": False,
        }
    step, run, state = step_of(weights.folder), read_run(weights), run_state(weights.folder)
    plain = yaml.safe_load((weights.root / RUN_FILE).read_text())
    return {
        "kind": RELEASE_CHECKPOINT if step is None else CHECKPOINT,
        "folder": str(weights.folder),
        "step": step,
        "run": None if run is None else _run(run),
        **state,
        "provenance": plain.get("provenance") or {},
        "has_optimizer": weights.has_optimizer,
    }


def _run(run: RunConfig) -> dict:
    return {
        "recipe": run.run.recipe,
        "seed": run.run.seed,
        "data": run.data.path,
        "start_from": run.checkpoint.start_from,
        "precision": run.precision.dtype,
        "steps": run.training.steps,
    }


def _network(model: ModelConfig) -> dict:
    sizes = json.loads(json.dumps(dataclasses.asdict(model)))  # tuples become lists, as in the file
    return {"architecture": family_of(model).architecture, "sizes": sizes, "parameters": part_counts(model)}


def _files(folder: Path) -> dict:
    """The files with tensors, of a checkpoint also the optimizer's; `__RANK_N.distcp` is named after who wrote it."""
    data = [path for path in folder.iterdir() if path.suffix in {".safetensors", ".distcp"}]
    ranks = {path.name.strip("_").partition("_")[0] for path in data if path.suffix == ".distcp"}
    return {"num": len(data), "bytes": sum(path.stat().st_size for path in data), "ranks": len(ranks) or None}


def _tensors(weights: Weights, bound: tuple[Binding, ...]) -> list[dict]:
    """Every stored tensor under its own name, in the order of the network."""
    part_of = part_of_keys(weights.model)
    if isinstance(weights, MegatronCheckpoint):
        names = [(one.megatron_key, list(one.hf_keys), one) for one in bound]
    else:
        names = [(key, [one.megatron_key], one) for one in bound for key in one.hf_keys]
    return [
        {
            "name": name,
            "other_names": others,
            "part": part_of[one.megatron_key],
            "shape": list(weights.specs[name].shape),
            "dtype": str(weights.specs[name].dtype).removeprefix("torch."),
            "bytes": weights.specs[name].num_bytes,
        }
        for name, others, one in names
    ]


def _totals(tensors: list[dict]) -> dict:
    num_bytes = sum(one["bytes"] for one in tensors)
    num_values = sum(math.prod(one["shape"]) for one in tensors)
    return {"tensors": len(tensors), "parameters": num_values, "bytes": num_bytes}
