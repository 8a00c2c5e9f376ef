"""What the launcher settles about validation: rows, tables, and what a resume must not change."""

import json

import pytest

from megatron_medx.data.plan.validation import VALIDATION_PLAN_FILE, prepare_validation
from megatron_medx.errors import ConfigError, DataError


@pytest.fixture
def validated(tiny_run):
    """A run of seven rows a step that is validated on the demo's data, one sample a row."""
    tiny_run.data.validation_path = tiny_run.data.path
    tiny_run.training.validate_every_steps, tiny_run.training.global_batch_rows = 3, 7
    return tiny_run


def prepare(config, folder, resume=False):
    prepare_validation(config, folder / "tables", folder / "run" / "checkpoints", resume)
    return config.training.validate_rows


def test_no_number_means_the_whole_batches_of_an_epoch(validated, tmp_path):
    rows = prepare(validated, tmp_path)
    index = json.loads((tmp_path / "run" / "checkpoints" / VALIDATION_PLAN_FILE).read_text())
    assert rows % 7 == 0 and rows > 300
    assert index["pieces"]["training.validate_rows"] == rows and index["pieces"]["run.seed"] == 0
    assert (tmp_path / "tables" / "0.npy").is_file()


def test_more_rows_than_an_epoch_has_are_refused(validated, tmp_path):
    most = prepare(validated, tmp_path)
    validated.training.validate_rows = most + 7
    with pytest.raises(DataError, match=rf"each sample at most once(.|\n)*set training.validate_rows={most}, or 0"):
        prepare(validated, tmp_path)


def test_a_split_that_fills_no_batch_is_refused(validated, tmp_path):
    validated.training.global_batch_rows = 10_000
    with pytest.raises(DataError, match=r"at least 10000, training.global_batch_rows(.|\n)*a larger share"):
        prepare(validated, tmp_path)


def test_a_resume_is_validated_on_the_same_rows(validated, tmp_path):
    validated.training.validate_rows = 14
    prepare(validated, tmp_path)
    validated.run.seed = 99  # of the run: validation has an order of its own
    assert prepare(validated, tmp_path, resume=True) == 14
    validated.training.validate_rows = 21
    with pytest.raises(ConfigError, match=r"validate_rows was 14 and is 21(.|\n)*validation.jsonl away"):
        prepare(validated, tmp_path, resume=True)
    assert prepare(validated, tmp_path) == 21, "a new run in the folder asks nobody"


def test_a_run_that_was_not_validated_before_may_be_now(validated, tmp_path):
    assert prepare(validated, tmp_path, resume=True) > 0
