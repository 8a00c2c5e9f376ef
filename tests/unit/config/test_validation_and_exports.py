"""The fields that ask for validation and exports: what is refused, what is derived, what is said."""

import pytest

from megatron_medx.config import checks
from megatron_medx.config.checks import check, check_files
from megatron_medx.config.describe import describe
from megatron_medx.config.exports import exports_bytes, is_export_due
from megatron_medx.config.files import read_run_yaml, write_run_yaml
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.validation import ranking_set, validation_config, validation_sets
from megatron_medx.errors import ConfigError
from megatron_medx.recipes import get_recipe

VALIDATED = ("training.validate_every_steps=40", "data.validation_path=split/val")


def changed(*overrides: str):
    return apply_overrides(get_recipe("demo"), list(overrides))


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["training.validate_every_steps=5"], "data.validation_path is empty(.|\n)*--splits train=0.98,val=0.02"),
        (
            [*VALIDATED, "data.validation_sets.a/b=x"],
            r"data\.validation_sets\.a/b(.|\n)*a name of letters, digits, - and _",
        ),
        ([*VALIDATED, "data.validation_sets.a.b=x"], "a name of letters"),
        ([*VALIDATED, "data.validation_sets.=x"], "a name of letters"),
        (["data.validation_sets.validation=x"], "write data.validation_path=x"),
        ([*VALIDATED, "data.validation_sets.chest="], "a name that is there: none"),
        (["data.validation_sets=x"], r"data\.validation_sets\.NAME=x"),
        (["data.validation_set.chest=x"], r"unknown key data\.validation_set\.chest"),
        (["training.validate_rows=4"], r"training.validate_rows 4(.|\n)*set training.validate_every_steps, or"),
        ([*VALIDATED, "training.validate_rows=7"], "set training.validate_rows=6 or 8"),
        ([*VALIDATED, "training.validate_rows=1"], "set training.validate_rows=2$"),
        (["training.validate_generations=4"], r"validate_generations 4(.|\n)*set training.validate_every_steps,"),
        (
            [*VALIDATED, "training.validate_generations=4", "training.validate_generation_tokens=4096",
             "data.seq_len_tokens=4096"],
            "lower training.validate_generation_tokens below 4096",
        ),
        (["training.validate_generations=-1"], "training.validate_generations at least 0"),
        (["training.validate_generation_tokens=0"], "training.validate_generation_tokens at least 1"),
        (["training.validate_every_steps=-1"], "training.validate_every_steps at least 0"),
        (["training.validate_rows=-2"], "training.validate_rows at least 0"),
        (["checkpoint.keep_exports=2"], "set checkpoint.export_every_steps, or checkpoint.keep_exports=0"),
        (["checkpoint.keep_exports=-2"], "checkpoint.keep_exports at least 0"),
        (["checkpoint.export_every_steps=-2"], "checkpoint.export_every_steps at least 0"),
        (["checkpoint.export_every_steps=250"], "every_steps 120(.|\n)*set checkpoint.export_every_steps=240 or 360,"),
        (["checkpoint.export_every_steps=50"], "set checkpoint.export_every_steps=120, or change checkpoint.every"),
        (
            [*VALIDATED, "training.validate_every_steps=100", "checkpoint.export_every_steps=120",
             "checkpoint.keep_exports=1"],
            "ranked by the validation loss of its step(.|\n)*export_every_steps=100 or 200, or change training",
        ),
        (["megatron.eval_iters=3"], "write training.validate_rows=VALUE instead"),
        (["megatron.eval_interval=3"], "write training.validate_every_steps=VALUE instead"),
    ],
)  # fmt: skip
def test_what_cannot_be_validated_or_exported_is_refused(overrides, match):
    with pytest.raises(ConfigError, match=match):
        check(changed(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [*VALIDATED, "checkpoint.export_every_steps=120", "checkpoint.keep_exports=1"],
        [*VALIDATED, "training.validate_rows=6"],
        [*VALIDATED, "training.validate_generations=4", "training.validate_generation_tokens=9"],
        ["training.validate_generation_tokens=100000"],
        ["training.validate_every_steps=40", "data.validation_sets.chest=split/chest"],
        [*VALIDATED, "data.validation_sets.chest-2_B=x", "data.validation_sets.y=z", "data.validation_sets.y="],
        [*VALIDATED, "training.validate_every_steps=7", "checkpoint.export_every_steps=120"],
        ["checkpoint.export_every_steps=240", "checkpoint.keep_exports=3"],
    ],
)
def test_what_fits_is_let_pass(overrides):
    check(changed(*overrides))


def test_validation_data_must_be_there_and_not_be_trained_on(tmp_path):
    for name in ("train", "val"):
        (tmp_path / name / "processor").mkdir(parents=True)
        (tmp_path / name / "manifest.json").touch()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "samples.jsonl").touch()
    words = (f"run.folder={tmp_path}/run", f"data.path={tmp_path}/train", "training.validate_every_steps=5")
    check_files(changed(*words, f"data.validation_path={tmp_path}/val"))
    with pytest.raises(ConfigError, match=r"no .*/other/manifest.json(.|\n)*then data.validation_path=OUT/val"):
        check_files(changed(*words, f"data.validation_path={tmp_path}/other"))
    with pytest.raises(ConfigError, match=r"source/manifest.json \(a source\)"):
        check_files(changed(*words, f"data.validation_path={tmp_path}/source"))
    with pytest.raises(ConfigError, match=r"is in data\.path and in data\.validation_path"):
        check_files(changed(*words, f"data.validation_path={tmp_path}/val/../train"))
    check_files(changed(*words, "training.validate_every_steps=0", f"data.validation_path={tmp_path}/other"))


def test_validation_reads_its_own_data_in_an_order_of_its_own():
    config = changed(*VALIDATED, "run.seed=77", "data.path=split/train")
    validated = validation_config(config, "validation")
    assert (validated.data.path, validated.data.processor) == ("split/val", "split/train/processor")
    assert validated.run.seed == validation_config(changed(*VALIDATED), "validation").run.seed != config.run.seed
    assert config.data.path == "split/train" and config.run.seed == 77, "the run itself is as it was"


def test_sets_by_name_survive_run_yaml(tmp_path):
    config = changed(*VALIDATED, "data.validation_sets.b=x", "data.validation_sets.a=y z", "data.validation_sets.b=w")
    assert list(validation_sets(config).items()) == [("validation", "split/val"), ("b", "w"), ("a", "y z")]
    assert validation_config(config, "a").data.path == "y z"
    write_run_yaml(config, tmp_path / "run.yaml", {})
    again = read_run_yaml(tmp_path / "run.yaml")
    assert again == config and list(validation_sets(again)) == ["validation", "b", "a"]
    assert ranking_set(again) == "validation"
    assert ranking_set(changed("data.validation_sets.b=x", "data.validation_sets.a=y")) == "b"
    text = (tmp_path / "run.yaml").read_text()
    (tmp_path / "run.yaml").write_text(text.replace("a: y z", "a: 7"))
    with pytest.raises(ConfigError, match=r"data\.validation_sets is names with texts"):
        read_run_yaml(tmp_path / "run.yaml")


def test_every_set_must_be_there_and_not_be_trained_on(tmp_path):
    for name in ("train", "val"):
        (tmp_path / name / "processor").mkdir(parents=True)
        (tmp_path / name / "manifest.json").touch()
    words = (f"run.folder={tmp_path}/run", f"data.path={tmp_path}/train", "training.validate_every_steps=5")
    check_files(changed(*words, f"data.validation_sets.a={tmp_path}/val"))
    with pytest.raises(ConfigError, match=r"no .*/other/manifest.json(.|\n)*data\.validation_sets\.a is a folder"):
        check_files(changed(*words, f"data.validation_sets.a={tmp_path}/other"))
    with pytest.raises(ConfigError, match=r"is in data\.path and in data\.validation_sets\.b"):
        check_files(
            changed(*words, f"data.validation_sets.a={tmp_path}/val", f"data.validation_sets.b={tmp_path}/train")
        )


def test_every_so_many_steps_and_the_last_are_exported():
    config = changed("checkpoint.export_every_steps=120", "training.steps=300")
    assert [step for step in range(1, 301) if is_export_due(config, step)] == [120, 240, 300]
    assert not is_export_due(changed(), 240)


def test_room_for_exports_is_asked_for_before_the_start(monkeypatch, tmp_path):
    """The demo has 2,999,840 weights of 4 bytes; of 5 exports due, 2 stay and one is being written."""
    words = ("training.steps=301", "checkpoint.every_steps=70", "checkpoint.export_every_steps=70")
    config = changed(*words, f"run.folder={tmp_path}/run")
    one = 4 * 2_999_840
    assert exports_bytes(config, 4) == 5 * one
    config.checkpoint.keep_exports = 2
    assert exports_bytes(config, 4) == 3 * one
    config.checkpoint.keep_exports = 9
    assert exports_bytes(config, 4) == 5 * one
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100_000_000}))
    with pytest.raises(
        ConfigError, match=r"0\.2 GB: two checkpoints(.|\n)*and the exports that stay(.|\n)*lower check"
    ):
        check_files(config)


def test_both_are_described():
    text = "\n".join(describe(changed(*VALIDATED, "checkpoint.export_every_steps=120", "checkpoint.keep_exports=2")))
    assert "validation  all rows of split/val, always the same, at step 0, after every 40 steps and the last" in text
    assert "exports     0.012 GB every 120 steps and after the last -> exports/ in the run folder, Hugging Face" in text
    assert "the 2 of lowest validation loss stay" in text
    text = "\n".join(describe(changed("checkpoint.export_every_steps=120", "checkpoint.keep_exports=3")))
    assert "the 3 newest stay" in text and "validation" not in text
    text = "\n".join(describe(changed(*VALIDATED, "training.validate_rows=1024", "checkpoint.export_every_steps=120")))
    assert "the first 1,024 rows of" in text and "all stay" in text and "answered" not in text
    text = "\n".join(describe(changed(*VALIDATED, "training.validate_generations=4")))
    assert "always the same, at step 0, after every 40 steps and the last; 4 questions of each answered" in text
    text = "\n".join(describe(changed(*VALIDATED, "data.validation_sets.chest=x", "training.validate_at_start=false")))
    assert "all rows of split/val, chest (x), always the same, after every 40 steps" in text
    assert "exports" not in "\n".join(describe(changed()))
