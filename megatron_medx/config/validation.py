"""What a run is validated on: its configuration, and the rules about the fields that ask for it.

Validation reads its data as training does, but in an order that neither the run's seed nor its step changes, so that
losses of different steps, runs and grids are about the same rows.
"""

import copy
from collections.abc import Iterator

from megatron_medx.config.problems import Problem
from megatron_medx.config.run import RunConfig

VALIDATION_FILE = "validation.jsonl"
"""In the run folder: a line for each validation (training/validation.py)."""

VALIDATION_SEED = 0
"""Of the order of validation rows, in every run."""


def validation_config(config: RunConfig) -> RunConfig:
    """The run as it would be if the validation data were its training data."""
    changed = copy.deepcopy(config)
    changed.data.path, changed.data.processor = config.data.validation_path, str(config.processor_folder)
    changed.run.seed = VALIDATION_SEED
    return changed


def validation_problems(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with the fields that ask for validation."""
    training, path = config.training, config.data.validation_path
    if not training.validate_every_steps:
        if training.validate_rows:
            yield Problem(
                f"training.validate_rows {training.validate_rows}, training.validate_every_steps 0",
                "steps after which these rows are looked at",
                "set training.validate_every_steps, or training.validate_rows=0",
            )
        return
    if not path:
        yield Problem(
            f"training.validate_every_steps {training.validate_every_steps}, data.validation_path is empty",
            "a data folder of samples that are not trained on",
            "add data.validation_path=OUT/val (and data.path=OUT/train) after "
            "medx data build SOURCE OUT --splits train=0.98,val=0.02; or set training.validate_every_steps=0",
        )
    if training.validate_rows % training.global_batch_rows:
        below = training.validate_rows // training.global_batch_rows * training.global_batch_rows
        fits = f"{below} or {below + training.global_batch_rows}" if below else f"{training.global_batch_rows}"
        yield Problem(
            f"training.validate_rows {training.validate_rows}, training.global_batch_rows {training.global_batch_rows}",
            "a multiple: validation goes through the grid in batches as large as a step's",
            f"set training.validate_rows={fits}",
        )


def validation_file_problems(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with the validation data on this machine's disk."""
    if not config.training.validate_every_steps or not config.data.validation_path:
        return
    trained_on = {folder.resolve() for folder in config.data_folders} if config.data.path else set()
    for folder in validation_config(config).data_folders:
        if not (folder / "manifest.json").is_file():
            yield Problem(
                f"no {folder}/manifest.json" + " (a source)" * (folder / "samples.jsonl").is_file(),
                "data.validation_path is a folder that `medx data build` wrote, or a YAML file that mixes several",
                "medx data build SOURCE OUT --splits train=0.98,val=0.02, then data.validation_path=OUT/val",
            )
        elif folder.resolve() in trained_on:
            yield Problem(
                f"{folder} is in data.path and in data.validation_path",
                "validation samples that are not trained on",
                "medx data build SOURCE OUT --splits train=0.98,val=0.02, then data.path=OUT/train and "
                "data.validation_path=OUT/val",
            )
