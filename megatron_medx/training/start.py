"""What a run starts from: found, checked, and brought into the form that Megatron loads.

`checkpoint.start_from` is a run folder, a Megatron checkpoint or a Hugging Face directory. The process that prepares
the run folder calls `prepare_start`, every rank asks `starting_weights` afterwards. A Hugging Face directory is
converted into `<run folder>/start`.

torch is loaded only where tensors are looked at: for a Hugging Face directory and for a carried optimizer.
"""

from pathlib import Path

from megatron_medx.config.checkpoint_folders import (
    RUN_FILE,
    TRACKER_FILE,
    check_start,
    is_hf_directory,
    step_of,
    weights_folder,
)
from megatron_medx.config.differences import differences
from megatron_medx.config.files import read_command, read_model_section, read_run_yaml
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import CheckpointError

START = "start"
"""Folder in the run folder with what a Hugging Face directory became."""


def prepare_start(config: RunConfig, folder: Path) -> None:
    """Check what the run starts from, and convert it where it is a Hugging Face directory.

    `config.checkpoint.start_from` becomes the one folder with tensors that is meant, so that run.yaml says which
    checkpoint it was even when the other run goes on; a Hugging Face directory stays as it is named.

    Args:
        config: the run; `start_from` is not empty.
        folder: the run folder.

    Raises:
        CheckpointError: it is no checkpoint, another network's, or has not the optimizer state that is asked for.
    """
    check_start(config.checkpoint.start_from)
    source = Path(config.checkpoint.start_from)
    if is_hf_directory(source):
        _refuse_to_carry(config, f"{source} is a Hugging Face directory")
        _convert(config.model, source, folder / START)
        return
    weights = weights_folder(source)
    _check_tracker(weights)
    check_same_network(config.model, weights.parent)
    if config.checkpoint.carry_optimizer:
        _check_optimizer(config, weights)
    config.checkpoint.start_from = str(weights)


def starting_weights(config: RunConfig, folder: Path) -> Path | None:
    """The folder with the tensors that a prepared run starts from; None for seeded weights.

    Args:
        config: the run, as `prepare_start` left it.
        folder: the run folder.
    """
    if not config.checkpoint.start_from:
        return None
    source = Path(config.checkpoint.start_from)
    return weights_folder(folder / START if is_hf_directory(source) else source)


def check_same_network(model: ModelConfig, root: Path) -> None:
    """Refuse weights of another architecture before anything is loaded.

    Args:
        model: the network that is trained.
        root: of a checkpoint.

    Raises:
        CheckpointError: the root does not say whose weights it holds, or another network's.
    """
    if not (root / RUN_FILE).is_file():
        raise CheckpointError(
            f"{root} has no {RUN_FILE}",
            "the run's configuration beside its checkpoints: it says which network they are of",
            f"copy the run's {RUN_FILE} there, or start from another checkpoint",
        )
    _check_model(read_model_section(root / RUN_FILE), model, root)


def _check_model(stored: ModelConfig, model: ModelConfig, place: Path) -> None:
    changed = differences(stored, model, ("in the checkpoint", "asked for"), "model.")
    if changed:
        raise CheckpointError(
            f"{place} is of another network: {', '.join(changed)}",
            "weights of the network that is trained",
            "set the model's fields to the checkpoint's values, or start from other weights",
        )


def _check_tracker(weights: Path) -> None:
    """Megatron takes from the tracker whether it loads a step or a release, also where one step is named."""
    root, kind = weights.parent, "release" if step_of(weights) is None else "step"
    said = (root / TRACKER_FILE).read_text().strip() if (root / TRACKER_FILE).is_file() else "nothing: it is absent"
    if said.isdecimal() != (kind == "step"):
        raise CheckpointError(
            f"{root / TRACKER_FILE} says {said}",
            f"a checkpoint root whose newest checkpoint is a {kind}, as {weights.name} is",
            "start from the root that the run or the conversion wrote",
        )


def _check_optimizer(config: RunConfig, weights: Path) -> None:
    """Every parameter that is trained needs its moments."""
    from megatron_medx.checkpoint.megatron_files.torch_dist import TorchDistFolder

    if not TorchDistFolder(weights).has_optimizer:
        _refuse_to_carry(config, f"{weights} holds no optimizer state")
    before, now = (set(one.training.freeze) for one in (read_run_yaml(weights.parent / RUN_FILE), config))
    if before != now:
        named = " and ".join(f"{', '.join(sorted(parts)) or 'nothing'} frozen {when}" for parts, when in
                             ((before, "before"), (now, "now")))  # fmt: skip
        raise CheckpointError(
            f"{weights.parent} was trained with {named}",
            "the same parts trained before and now: Megatron loads moments for every trained parameter and no other",
            "set checkpoint.carry_optimizer=false, or change training.freeze",
        )


def _refuse_to_carry(config: RunConfig, found: str) -> None:
    if config.checkpoint.carry_optimizer:
        raise CheckpointError(
            f"{found}, and checkpoint.carry_optimizer=true",
            "a checkpoint of a run, with Adam's moments",
            "set checkpoint.carry_optimizer=false, or start from the run folder",
        )


def _convert(model: ModelConfig, source: Path, start: Path) -> None:
    """Convert a Hugging Face directory, unless a launch that ended early has done it and the source is as it was."""
    from megatron_medx.checkpoint.convert import conversion_command, to_megatron
    from megatron_medx.checkpoint.hugging_face.hf_directory import HfDirectory

    _check_model(HfDirectory(source).model, model, source)
    if (start / TRACKER_FILE).is_file():
        changed_s = max(path.stat().st_ctime for path in (source, *source.iterdir()))
        is_same = read_command(start / RUN_FILE) == conversion_command(source, start)
        if is_same and changed_s < (start / TRACKER_FILE).stat().st_ctime:
            return
    to_megatron(source, start, overwrite=True)
