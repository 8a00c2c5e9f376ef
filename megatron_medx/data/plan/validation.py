"""What the launcher does before the ranks start so that they can validate: tables, enough rows, comparison.

Comes in: a RunConfig with `training.validate_every_steps`. Goes out: the tables of each validation set in a folder that
all ranks see, and what its rows hang on, which a resume must not change.
"""

import json
from pathlib import Path

from megatron_medx.config.run import RunConfig
from megatron_medx.config.validation import (
    MAIN_SET,
    VALIDATION_FILE,
    set_field,
    validated_rows,
    validation_config,
    validation_sets,
)
from megatron_medx.data.plan.prepare import compare_plans, open_prepared, prepare_data
from megatron_medx.data.plan.row_plan import plan_rows
from megatron_medx.errors import ConfigError, DataError

VALIDATION_TABLES = "validation"
"""Folder with a folder of tables for each set, in the run folder's `data`."""

VALIDATION_PLAN_FILE = "validation_plan.json"
"""Beside the checkpoints: of each set the `pieces` that its rows hang on."""


def prepare_validation(config: RunConfig, tables: Path, checkpoints: Path, resume: bool) -> None:
    """Check the data of every set, write their tables, and what their rows hang on.

    Args:
        config: the run.
        tables: folder with a folder for each set; is made.
        checkpoints: folder of the run's checkpoints, where it is written what the rows hang on.
        resume: the run goes on, and the rows of a set that it has been validated on must be those of before.

    Raises:
        ConfigError: a run that goes on would be validated on other rows.
        DataError: the data are not sound, or an epoch has too few rows.
    """
    pieces = {name: _prepare_set(config, name, tables / name) for name in validation_sets(config)}
    path = checkpoints / VALIDATION_PLAN_FILE
    former = _read_plan(path) if resume else {}
    changed = [
        f"{text} (set {name})"
        for name in pieces
        if name in former
        for text in compare_plans(former[name], pieces[name])
    ]
    if changed:
        raise ConfigError(
            f"the resumed run would be validated on other rows: {'; '.join(changed)}",
            "the rows that its former losses are about: others cannot be compared with them",
            f"restore the values, or give the set another name; or move {path} and "
            f"{checkpoints.parent / VALIDATION_FILE} away",
        )
    checkpoints.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"sets": former | pieces}, indent=1) + "\n", encoding="utf-8")


def _prepare_set(config: RunConfig, name: str, tables: Path) -> dict:
    """Write the tables of a set; what its rows hang on, their number with it."""
    validated = validation_config(config, name)
    prepared = prepare_data(validated, tables)
    num_rows = plan_rows(validated, *open_prepared(validated, tables)).rows_per_epoch
    looked_at = validated_rows(config, num_rows)
    if not looked_at:
        raise DataError(
            f"{set_field(name)}={validated.data.path} makes {num_rows} rows",
            f"at least {config.training.global_batch_rows}, training.global_batch_rows: validation goes in whole "
            "batches",
            "give the set more samples (of a split a larger share: medx data build --splits), or lower "
            "training.global_batch_rows",
        )
    return prepared.pieces | {"training.validate_rows": looked_at}


def _read_plan(path: Path) -> dict[str, dict]:
    """Name -> pieces of the sets that a run has been validated on; before there were several it was one."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"sets": {}}
    return content["sets"] if "sets" in content else {MAIN_SET: content["pieces"]}
