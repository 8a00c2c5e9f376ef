"""What the launcher does before the ranks start so that they can validate: tables, number of rows, comparison.

Comes in: a RunConfig with `training.validate_every_steps`. Goes out: the tables of the validation data in a folder that
all ranks see, `training.validate_rows` as a number, and what the rows hang on, which a resume must not change.
"""

import json
from pathlib import Path

from megatron_medx.config.run import RunConfig
from megatron_medx.config.validation import VALIDATION_FILE, validation_config
from megatron_medx.data.plan.prepare import compare_plans, open_prepared, prepare_data
from megatron_medx.data.plan.row_plan import plan_rows
from megatron_medx.errors import ConfigError, DataError

VALIDATION_TABLES = "validation"
"""Folder with the tables, in the run folder's `data`."""

VALIDATION_PLAN_FILE = "validation_plan.json"
"""Beside the checkpoints: `pieces` that the rows of the run's validation hang on."""


def prepare_validation(config: RunConfig, tables: Path, checkpoints: Path, resume: bool) -> None:
    """Check the validation data, write their tables, settle how many rows are looked at.

    Args:
        config: the run; `training.validate_rows` is set where it was 0.
        tables: folder for the tables; is made.
        checkpoints: folder of the run's checkpoints, where it is written what the rows hang on.
        resume: the run goes on, and the rows must be those of before, if it was validated then.

    Raises:
        ConfigError: a run that goes on would be validated on other rows.
        DataError: the data are not sound, or an epoch has too few rows.
    """
    validated = validation_config(config)
    prepared = prepare_data(validated, tables)
    _settle_rows(config, plan_rows(validated, *open_prepared(validated, tables)).rows_per_epoch)
    pieces = prepared.pieces | {"training.validate_rows": config.training.validate_rows}
    path = checkpoints / VALIDATION_PLAN_FILE
    if resume and path.is_file():
        former = json.loads(path.read_text(encoding="utf-8"))["pieces"]
        if changed := compare_plans(former, pieces):
            raise ConfigError(
                f"the resumed run would be validated on other rows: {'; '.join(changed)}",
                "the rows that its former losses are about: others cannot be compared with them",
                f"restore the values; or move {path} and {checkpoints.parent / VALIDATION_FILE} away",
            )
    checkpoints.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pieces": pieces}, indent=1) + "\n", encoding="utf-8")


def _settle_rows(config: RunConfig, num_rows: int) -> None:
    """Put the number of rows in place of 0; refuse more than there are: samples would count twice."""
    training, path = config.training, config.data.validation_path
    whole = num_rows // training.global_batch_rows * training.global_batch_rows
    if not whole:
        raise DataError(
            f"data.validation_path={path} makes {num_rows} rows",
            f"at least {training.global_batch_rows}, training.global_batch_rows: validation goes in whole batches",
            "give the split a larger share (medx data build --splits), or lower training.global_batch_rows",
        )
    if training.validate_rows > whole:
        raise DataError(
            f"data.validation_path={path} makes {num_rows} rows, training.validate_rows is {training.validate_rows}",
            "each sample at most once in a validation",
            f"set training.validate_rows={whole}, or 0 for all",
        )
    training.validate_rows = training.validate_rows or whole
