"""What a run is validated on: its sets by name, the configuration of each, and the rules about the fields.

Validation reads its data as training does, but in an order that neither the run's seed nor its step changes, so that
losses of different steps, runs and grids are about the same rows.
"""

import copy
import re
from collections.abc import Iterator

from megatron_medx.config.problems import Problem
from megatron_medx.config.run import RunConfig

VALIDATION_FILE = "validation.jsonl"
"""In the run folder: a line for each validation and set (training/validation.py)."""

MAIN_SET = "validation"
"""Name of the set that `data.validation_path` is."""

VALIDATION_SEED = 0
"""Of the order of validation rows, in every run."""

SPLIT = "medx data build SOURCE OUT --splits train=0.98,val=0.02"


def validation_sets(config: RunConfig) -> dict[str, str]:
    """Name -> data folder or mixture of each set, in the order in which they are validated."""
    main = {MAIN_SET: config.data.validation_path} if config.data.validation_path else {}
    return main | config.data.validation_sets


def ranking_set(config: RunConfig) -> str:
    """The set whose loss exports are ranked by: the main one, or the first where there is none."""
    return next(iter(validation_sets(config)), MAIN_SET)


def validation_config(config: RunConfig, name: str) -> RunConfig:
    """The run as it would be if a validation set were its training data."""
    changed = copy.deepcopy(config)
    changed.data.path, changed.data.processor = validation_sets(config)[name], str(config.processor_folder)
    changed.run.seed = VALIDATION_SEED
    return changed


def set_field(name: str) -> str:
    """The field that names a set's data, for messages."""
    return "data.validation_path" if name == MAIN_SET else f"data.validation_sets.{name}"


def validated_rows(config: RunConfig, rows_per_epoch: int) -> int:
    """Rows of a set that are looked at: whole batches of one epoch, at most `training.validate_rows`; 0: too few."""
    whole = rows_per_epoch // config.training.global_batch_rows * config.training.global_batch_rows
    return min(config.training.validate_rows or whole, whole)


def validation_problems(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with the fields that ask for validation."""
    training = config.training
    yield from _name_problems(config)
    yield from _generation_problems(config)
    if not training.validate_every_steps:
        if training.validate_rows:
            yield Problem(
                f"training.validate_rows {training.validate_rows}, training.validate_every_steps 0",
                "steps after which these rows are looked at",
                "set training.validate_every_steps, or training.validate_rows=0",
            )
        return
    if not validation_sets(config):
        yield Problem(
            f"training.validate_every_steps {training.validate_every_steps}, data.validation_path is empty",
            "a data folder of samples that are not trained on",
            f"add data.validation_path=OUT/val (and data.path=OUT/train) after {SPLIT}, or "
            "data.validation_sets.NAME=FOLDER; or set training.validate_every_steps=0",
        )
    if training.validate_rows % training.global_batch_rows:
        below = training.validate_rows // training.global_batch_rows * training.global_batch_rows
        fits = f"{below} or {below + training.global_batch_rows}" if below else f"{training.global_batch_rows}"
        yield Problem(
            f"training.validate_rows {training.validate_rows}, training.global_batch_rows {training.global_batch_rows}",
            "a multiple: validation goes through the grid in batches as large as a step's",
            f"set training.validate_rows={fits}",
        )


def _generation_problems(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with the fields that ask for sample generations."""
    training, longest = config.training, config.data.seq_len_tokens
    if not training.validate_generations:
        return
    if not training.validate_every_steps:
        yield Problem(
            f"training.validate_generations {training.validate_generations}, training.validate_every_steps 0",
            "validations, whose sets the questions are of",
            "set training.validate_every_steps, or training.validate_generations=0",
        )
    if training.validate_generation_tokens >= longest:
        yield Problem(
            f"training.validate_generation_tokens {training.validate_generation_tokens}, data.seq_len_tokens {longest}",
            "room for a question beside its answer: both lie in one row",
            f"lower training.validate_generation_tokens below {longest}",
        )


def _name_problems(config: RunConfig) -> Iterator[Problem]:
    for name, path in config.data.validation_sets.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            yield Problem(
                f"data.validation_sets.{name}",
                "a name of letters, digits, - and _: folders and curves are called by it",
                "choose another name",
            )
        elif name == MAIN_SET:
            yield Problem(
                f"data.validation_sets.{name}",
                f"another name: {MAIN_SET} is data.validation_path",
                f"write data.validation_path={path}",
            )
        elif not path:
            yield Problem(f"data.validation_sets.{name} is empty", "a data folder", "name one, or take the set out")


def validation_file_problems(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with the validation data on this machine's disk."""
    if not config.training.validate_every_steps:
        return
    trained_on = {folder.resolve() for folder in config.data_folders} if config.data.path else set()
    for name in validation_sets(config):
        field = set_field(name)
        for folder in validation_config(config, name).data_folders:
            if not (folder / "manifest.json").is_file():
                yield Problem(
                    f"no {folder}/manifest.json" + " (a source)" * (folder / "samples.jsonl").is_file(),
                    f"{field} is a folder that `medx data build` wrote, or a YAML file that mixes several",
                    f"{SPLIT}, then {field}=OUT/val",
                )
            elif folder.resolve() in trained_on:
                yield Problem(
                    f"{folder} is in data.path and in {field}",
                    "validation samples that are not trained on",
                    f"{SPLIT}, then data.path=OUT/train and {field}=OUT/val",
                )
