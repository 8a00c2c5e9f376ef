"""What the launcher settles about validation: rows, tables, and what a resume must not change."""

import json

import pytest

from megatron_medx.config.validation import validated_rows
from megatron_medx.data.plan.validation import VALIDATION_PLAN_FILE, prepare_validation
from megatron_medx.errors import ConfigError, DataError


@pytest.fixture
def validated(tiny_run):
    """A run of seven rows a step that is validated on the demo's data, one sample a row."""
    tiny_run.data.validation_path = tiny_run.data.path
    tiny_run.training.validate_every_steps, tiny_run.training.global_batch_rows = 3, 7
    return tiny_run


def prepare(config, folder, resume=False):
    """What each set's rows hang on."""
    checkpoints = folder / "run" / "checkpoints"
    prepare_validation(config, folder / "tables", checkpoints, resume)
    return json.loads((checkpoints / VALIDATION_PLAN_FILE).read_text())["sets"]


def num_rows(config, folder, resume=False):
    return prepare(config, folder, resume)["validation"]["training.validate_rows"]


def test_no_number_means_the_whole_batches_of_an_epoch(validated, tmp_path):
    ((name, pieces),) = prepare(validated, tmp_path).items()
    rows = pieces["training.validate_rows"]
    assert (name, rows % 7, rows > 300, pieces["run.seed"]) == ("validation", 0, True, 0)
    assert (tmp_path / "tables" / "validation" / "0.npy").is_file()


def test_a_number_is_the_most_that_a_set_gives(validated, tmp_path):
    whole = num_rows(validated, tmp_path)
    for asked, looked_at in ((14, 14), (whole + 7, whole), (0, whole)):
        validated.training.validate_rows = asked
        assert num_rows(validated, tmp_path) == looked_at
    validated.training.validate_rows = 14
    assert [validated_rows(validated, rows) for rows in (6, 7, 13, 14, 99)] == [0, 7, 7, 14, 14]


def test_every_set_has_tables_of_its_own(validated, tmp_path):
    validated.data.validation_sets = {"chest": validated.data.path, "a-b_2": validated.data.path}
    validated.data.validation_path = ""
    assert list(prepare(validated, tmp_path)) == ["chest", "a-b_2"]
    assert all((tmp_path / "tables" / name / "0.npy").is_file() for name in ("chest", "a-b_2"))


def test_a_set_that_fills_no_batch_is_refused(validated, tmp_path):
    validated.training.global_batch_rows = 10_000
    with pytest.raises(DataError, match=r"at least 10000, training.global_batch_rows(.|\n)*a larger share"):
        prepare(validated, tmp_path)
    validated.data.validation_sets = {"chest": validated.data.path}
    validated.data.validation_path = ""
    with pytest.raises(DataError, match=r"data\.validation_sets\.chest=.* makes \d+ rows"):
        prepare(validated, tmp_path)


def test_a_resume_is_validated_on_the_same_rows(validated, tmp_path):
    validated.training.validate_rows = 14
    prepare(validated, tmp_path)
    validated.run.seed = 99  # of the run: validation has an order of its own
    assert num_rows(validated, tmp_path, resume=True) == 14
    validated.training.validate_rows = 21
    with pytest.raises(
        ConfigError, match=r"validate_rows was 14 and is 21 \(set validation\)(.|\n)*validation.jsonl away"
    ):
        prepare(validated, tmp_path, resume=True)
    assert num_rows(validated, tmp_path) == 21, "a new run in the folder asks nobody"


def test_a_resume_may_bring_a_set_and_drop_one_that_comes_back_the_same(validated, tmp_path):
    data = validated.data
    prepare(validated, tmp_path)
    data.validation_path, data.validation_sets = "", {"chest": data.path}
    assert list(prepare(validated, tmp_path, resume=True)) == ["validation", "chest"]
    data.validation_path, validated.training.validate_rows = data.path, 7
    with pytest.raises(ConfigError, match="would be validated on other rows"):
        prepare(validated, tmp_path, resume=True)


def test_a_plan_of_before_there_were_several_sets_is_that_of_the_main_one(validated, tmp_path):
    pieces = prepare(validated, tmp_path)["validation"]
    plan = tmp_path / "run" / "checkpoints" / VALIDATION_PLAN_FILE
    plan.write_text(json.dumps({"pieces": pieces}))
    assert prepare(validated, tmp_path, resume=True) == {"validation": pieces}
    plan.write_text(json.dumps({"pieces": pieces | {"training.validate_rows": 7}}))
    with pytest.raises(ConfigError, match="was 7 and is"):
        prepare(validated, tmp_path, resume=True)


def test_a_run_that_was_not_validated_before_may_be_now(validated, tmp_path):
    assert num_rows(validated, tmp_path, resume=True) > 0
