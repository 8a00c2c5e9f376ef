"""run.yaml: exact round trip, strict reading, a model section alone."""

import pytest
import yaml

from megatron_medx.config import files
from megatron_medx.config.files import (
    collect_provenance,
    read_model_section,
    read_run_yaml,
    write_model_only,
    write_run_yaml,
)
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.errors import ConfigError
from megatron_medx.recipes import RECIPES, get_recipe

PROVENANCE = {"command": "medx train demo", "versions": {"torch": "2.15.0"}}


@pytest.mark.parametrize("name", RECIPES)
def test_round_trip_is_exact(name, tmp_path):
    config = apply_overrides(
        get_recipe(name),
        [
            "training.freeze=vision",
            "optimizer.vision_lr=1e-05",
            "megatron.a=[1, x]",
            "run.folder=on",
            "megatron.b=1e-7",
        ],
    )
    write_run_yaml(config, tmp_path / "run.yaml", PROVENANCE)
    assert read_run_yaml(tmp_path / "run.yaml") == config
    assert read_model_section(tmp_path / "run.yaml") == config.model
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_the_file_says_how_to_reproduce_the_run_and_where_it_came_from(tmp_path):
    path = tmp_path / "new" / "run.yaml"
    write_run_yaml(get_recipe("demo"), path, collect_provenance(["medx", "train", "demo"]))
    assert f"medx train {path}" in path.read_text().splitlines()[0]
    provenance = yaml.safe_load(path.read_text())["provenance"]
    assert provenance["command"] == "medx train demo"
    assert set(provenance["versions"]) == {"torch", "megatron-core", "transformers", "megatron-medx"}
    assert provenance["commit"] and provenance["date"]


def test_a_copy_that_was_launched_names_its_commit(tmp_path, monkeypatch):
    """It lies within a checkout of another commit, which git would name."""
    (tmp_path / "COMMIT").write_text("abc\n")
    monkeypatch.setattr(files, "__file__", str(tmp_path / "megatron_medx" / "config" / "files.py"))
    assert collect_provenance([])["commit"] == "abc"


def test_a_model_alone(tmp_path):
    path, model = tmp_path / "run.yaml", get_recipe("demo").model
    write_model_only(model, path, PROVENANCE)
    assert read_model_section(path) == model
    with pytest.raises(ConfigError, match="holds only the model section"):
        read_run_yaml(path)


def test_a_field_that_has_moved_since_is_read_where_it_was(tmp_path):
    path = tmp_path / "run.yaml"
    write_run_yaml(get_recipe("demo"), path, {})
    plain = yaml.safe_load(path.read_text())
    plain["training"]["precision"] = plain.pop("precision")["dtype"]
    path.write_text(yaml.safe_dump(plain))
    assert read_run_yaml(path) == get_recipe("demo") and read_run_yaml(path).precision.dtype == "fp32"


@pytest.mark.parametrize(
    "forget", [lambda plain: plain["training"].pop("recompute"), lambda plain: plain.pop("survival")]
)
def test_what_is_younger_than_the_file_takes_its_default(tmp_path, forget):
    assert read_run_yaml(written(tmp_path, forget)) == get_recipe("demo")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda plain: plain["parallel"].update(tensr=2), r"did you mean parallel\.tensor\?"),
        (lambda plain: plain.update(extra={}), "unknown key extra"),
        (lambda plain: plain.pop("training"), "without the section training"),
        (lambda plain: plain["model"].pop("hidden_size"), "no model.hidden_size"),
        (lambda plain: plain["training"].update(steps="5"), "training.steps is a whole number"),
        (lambda plain: plain["training"].update(steps=True), "training.steps is a whole number"),
        (lambda plain: plain["training"].update(freeze="vision"), "training.freeze is a list of names"),
        (lambda plain: plain["model"].update(vision=3), "model.vision is a section with fields"),
        (lambda plain: plain.update(megatron=[]), "megatron is names with values"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, match):
    with pytest.raises(ConfigError, match=match):
        read_run_yaml(written(tmp_path, change))


@pytest.mark.parametrize(
    ("content", "match"), [("a: [1", "is not YAML"), ("- 1", "holds no sections"), (None, "No such file")]
)
def test_what_is_no_run_yaml_is_refused(tmp_path, content, match):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    for read in (read_run_yaml, read_model_section):
        with pytest.raises(ConfigError, match=match):
            read(path)


def test_a_file_without_model_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("data: {}")
    with pytest.raises(ConfigError, match="without a model section"):
        read_model_section(tmp_path / "run.yaml")


def written(folder, change):
    """Write the demo's run.yaml, changed."""
    path = folder / "run.yaml"
    write_run_yaml(get_recipe("demo"), path, PROVENANCE)
    plain = yaml.safe_load(path.read_text())
    change(plain)
    path.write_text(yaml.safe_dump(plain))
    return path
