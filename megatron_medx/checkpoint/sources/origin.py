"""Where weights that are read come from, for the provenance of what is written."""

from pathlib import Path

import yaml

from megatron_medx.config.checkpoint_folders import RUN_FILE, is_megatron_checkpoint, step_of
from megatron_medx.errors import CheckpointError


def origin_of(folder: Path) -> dict[str, object]:
    """Say where weights lie, after which step they were saved, and what the run.yaml beside them knows of them.

    Args:
        folder: a Hugging Face directory, or the folder of a checkpoint that holds the tensors.
    Returns:
        `path`; `step`, None for what no run saved; and, where there is a run.yaml, `recipe` (None for a conversion)
        and its `provenance`, which may name sources in turn.
    Raises:
        CheckpointError: that file cannot be read.
    """
    is_checkpoint = is_megatron_checkpoint(folder)
    origin = {"path": str(folder.absolute()), "step": step_of(folder) if is_checkpoint else None}
    run_file = (folder.absolute().parent if is_checkpoint else folder) / RUN_FILE
    if not run_file.is_file():
        return origin
    try:
        plain = yaml.safe_load(run_file.read_text())
        return {**origin, "recipe": plain.get("run", {}).get("recipe"), "provenance": plain.get("provenance")}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise CheckpointError(
            f"{run_file} cannot be read: {' '.join(str(error).split())}",
            "the run.yaml that was written with these weights, or none",
            "restore the file as it was",
        ) from None
