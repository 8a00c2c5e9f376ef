"""Which folder holds a checkpoint's tensors, and whether a path is a checkpoint at all; found without torch.

    RUN/checkpoints/ or any other root:
        run.yaml                              the run, or only its model section
        latest_checkpointed_iteration.txt     `1200`, or `release` for a converted checkpoint
        iter_0001200/ or release/             the tensors; `metadata.json` is written last

A path given by a person may be the run folder, the root, one of the iteration folders, or a link to one (`latest`).
"""

import re
from pathlib import Path

from megatron_medx.errors import CheckpointError

CHECKPOINTS = "checkpoints"
TRACKER_FILE = "latest_checkpointed_iteration.txt"
"""Megatron's pointer to the newest complete checkpoint, written after everything else of a save."""
METADATA_FILE = "metadata.json"
"""Says which backend wrote the tensors; Megatron writes it last, so its presence means that they are whole."""
RUN_FILE = "run.yaml"
RELEASE = "release"
"""Megatron's word for weights that no run has left: loading starts at step 0, without optimizer or random state."""
CONFIG_FILE = "config.json"
"""What makes a folder a Hugging Face directory."""

_ITERATION_FOLDER = re.compile(r"iter_(\d{7,})|" + RELEASE)


def weights_folder(path: Path) -> Path:
    """The folder with the tensors: `path` itself, or the newest one of a root or of a run folder.

    Raises:
        CheckpointError: there is none, or its save was not completed.
    """
    path = _behind_link(path)
    root = _root(path)
    if root is None:
        raise CheckpointError(
            f"{path} holds no {TRACKER_FILE}",
            "a run folder, the root of a Megatron checkpoint, or one of its iter_ folders",
            "check the path (a run keeps its checkpoints in RUN/checkpoints)",
        )
    if _ITERATION_FOLDER.fullmatch(path.absolute().name):
        folder = path
    else:
        latest = (root / TRACKER_FILE).read_text().strip()
        if latest != RELEASE and not latest.isdecimal():
            raise CheckpointError(
                f"{root / TRACKER_FILE} says {latest!r}",
                f"a step number or {RELEASE!r}",
                "name one iter_ folder of the checkpoint instead",
            )
        folder = root / (RELEASE if latest == RELEASE else f"iter_{int(latest):07d}")
    if not (folder / METADATA_FILE).is_file():
        raise CheckpointError(
            f"{folder} has no {METADATA_FILE}, which Megatron writes last",
            "a completed torch_dist checkpoint",
            "wait until the save is finished, or name an earlier iter_ folder",
        )
    return folder


def check_root_name(root: Path) -> None:
    """Refuse a root whose own name would be read as that of one of its folders.

    Raises:
        CheckpointError: it is called `release`, or like an iteration folder.
    """
    if _ITERATION_FOLDER.fullmatch(root.absolute().name):
        raise CheckpointError(
            f"{root.name} as the name of a checkpoint's root",
            "a name that is not one of the folders inside a root",
            "choose another output folder",
        )


def is_megatron_checkpoint(path: Path) -> bool:
    """True where the path looks like a run folder with checkpoints, a checkpoint root or an iteration folder."""
    return _root(path) is not None


def is_hf_directory(path: Path) -> bool:
    """True where the path looks like a Hugging Face directory."""
    return (path / CONFIG_FILE).is_file() and not is_megatron_checkpoint(path)


def step_of(weights: Path) -> int | None:
    """The step that a folder with tensors was saved after; None for a release.

    Args:
        weights: from `weights_folder`.
    """
    number = _ITERATION_FOLDER.fullmatch(weights.absolute().name)[1]
    return None if number is None else int(number)


def check_start(start_from: str) -> None:
    """Refuse to start from what is neither a whole checkpoint nor a Hugging Face directory.

    Raises:
        CheckpointError: with what was found instead.
    """
    path = Path(start_from)
    if not path.is_dir():
        raise CheckpointError(
            f"checkpoint.start_from: no folder {path}",
            "a run folder, a Megatron checkpoint or a Hugging Face directory",
            "correct the path, or finish the stage that writes it",
        )
    if not is_hf_directory(path):
        weights_folder(path)


def _behind_link(path: Path) -> Path:
    """The iteration folder that a link such as `latest` points to; any other path as it is."""
    target = path.resolve() if path.is_symlink() else path
    return target if _ITERATION_FOLDER.fullmatch(target.name) and (target.parent / TRACKER_FILE).is_file() else path


def _root(path: Path) -> Path | None:
    path = _behind_link(path)
    if _ITERATION_FOLDER.fullmatch(path.absolute().name) and not (path / CONFIG_FILE).is_file():  # else an export
        return path.absolute().parent
    return next((root for root in (path, path / CHECKPOINTS) if (root / TRACKER_FILE).is_file()), None)
