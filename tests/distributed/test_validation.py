"""Validation and exports beside training: they change nothing of it, and validation is the same on every grid.

The same runs without either are those of test_grids.py.
"""

import json
import math

import pytest
import small_data
import torch
from agreement import LOSS_TOLERANCE
from grids import ONE, SCENARIOS, SMALL
from medx_runs import stopped_at

from megatron_medx.checkpoint.megatron_files.torch_dist import TorchDistFolder
from megatron_medx.checkpoint.verify import verify
from megatron_medx.data.choices import choice_records

GRIDS = (("dense", "pp2 vpp2"), ("dense", "tp2 cp2"), ("experts", "dp2 ep2"))
"""Scenario and grid: each axis, and chunks of stages."""

NAMES = ("dense", "experts")


QUESTIONS = 6
"""Multiple-choice questions of the second set; with one row left over, a few are not whole."""


@pytest.fixture(scope="module")
def validation_data(data, tmp_path_factory):
    """Two data folders with the small one's images: nine rows of samples, two batches and one left over; questions."""
    folder = tmp_path_factory.mktemp("validation")
    source = folder / "source"
    source.mkdir()
    for name in ("images", "processor"):
        (source / name).symlink_to(data / "source" / name)
    asked = [
        small_data.conversation(f"asked-{number}", "How many?", f"{len(images)} are shown, or none.", images)
        | {"modality": "CT" if images else "text", "source": "web"}
        for number, images in enumerate((*small_data.PICTURED, (), ()))
    ]
    told = [
        {"id": f"told-{number}", "content": [{"type": "text", "text": "The heart is of normal size. " * (20 + number)}]}
        for number in range(8)
    ]
    samples = small_data.build(source, folder / "samples", asked + told)
    answers = ["Yes.", "No, none of it is visible here.", "Of the left femur, healed.", "A fracture."]
    image = {"type": "image", "image": "images/square.png"}
    questions = [
        record | {"modality": "CT" if number % 2 else "text"}
        for number in range(QUESTIONS)
        for record in choice_records(
            f"question-{number}",
            [image] * (number % 2) + [{"type": "text", "text": f"What of finding {number}? " + "It is small. " * 9}],
            answers,
            number % 4,
        )
    ]
    return samples, small_data.build(source, folder / "questions", questions)


def validated(runs, validation_data, name, grid):
    """The scenario's run, validated at step 0 and after each; both saved checkpoints, of 3 and 5, are exported."""
    samples, questions = validation_data
    words = [f"data.validation_path={samples}", f"data.validation_sets.questions={questions}"]
    words += ["training.validate_every_steps=1"]
    if grid == ONE:
        words += ["checkpoint.export_every_steps=3", "checkpoint.keep_exports=1"]
    title = f"{name} validated on {grid}"
    return runs.once(title, lambda runs: runs.train(title, *SMALL, *SCENARIOS[name], *words, grid=grid))


def resume_from_3(runs, validation_data):
    """The run on one process, dead after its last step with step 3 saved last, goes on."""
    whole = validated(runs, validation_data, "dense", ONE).result().ok()
    return runs.resume(stopped_at(3, whole, runs.folder / "validated_stopped_at_3"), "validated_on")


@pytest.fixture(scope="module", autouse=True)
def resumed(runs, validation_data):
    """Starts everything of this module; what comes of the resume."""
    for name, grid in (*((name, ONE) for name in NAMES), *GRIDS):
        runs.scenario(name, grid)
        validated(runs, validation_data, name, grid)
    return runs.submit(resume_from_3, validation_data)


def lines(run, name="validation"):
    told = [json.loads(line) for line in (run.folder / "validation.jsonl").read_text().splitlines()]
    return [line for line in told if line["set"] == name]


def column(run, key, name="validation"):
    return [line[key] for line in lines(run, name)]


def floats(line):
    """Every loss and what is made of it, by where it stands in a line."""
    groups = [(key, line[key]) for key in ("by_modality", "by_source")]
    return {key: line[key] for key in ("loss", "perplexity", "bits_per_byte")} | {
        (key, name): group["loss"] for key, of_key in groups for name, group in of_key.items()
    }


def exact(line):
    """What no rounding touches."""
    counted = {
        (key, name): group["tokens"] for key in ("by_modality", "by_source") for name, group in line[key].items()
    }
    keys = ("step", "set", "rows", "tokens", "trained_tokens", "samples_crc", "num_questions", "accuracy")
    return counted | {key: line[key] for key in keys}


@pytest.mark.parametrize(("name", "grid"), [("dense", ONE), *GRIDS])
def test_training_is_bit_for_bit_what_it_is_without(name, grid, runs, validation_data):
    without = runs.scenario(name, grid).result().ok()
    with_it = validated(runs, validation_data, name, grid).result().ok()
    for key in ("step", "loss", "grad_norm", "lr", "samples_crc"):
        assert with_it.column(key) == without.column(key), key
    before, after = (TorchDistFolder(run.checkpoints / "iter_0000005") for run in (without, with_it))
    differing = [key for key in before.specs if not torch.equal(before.read(key), after.read(key))]
    assert before.specs and not differing, differing


@pytest.mark.parametrize(("name", "grid"), GRIDS)
def test_every_grid_finds_the_same_numbers_on_the_same_rows(name, grid, runs, validation_data):
    one, run = (validated(runs, validation_data, name, where).result().ok() for where in (ONE, grid))
    for of_set in ("validation", "questions"):
        assert [exact(line) for line in lines(run, of_set)] == [exact(line) for line in lines(one, of_set)]
        assert column(one, "step", of_set) == [0, 1, 2, 3, 4, 5] and len(set(column(one, "samples_crc", of_set))) == 1
        pairs = zip(lines(run, of_set), lines(one, of_set), strict=True)
        gaps = {
            (there["step"], key): abs(value / floats(there)[key] - 1)
            for here, there in pairs
            for key, value in floats(here).items()
        }
        assert max(gaps.values()) < LOSS_TOLERANCE, max(gaps.items(), key=lambda item: item[1])
    assert f"step 5: validation loss {column(run, 'loss')[-1]:.4f}, perplexity" in run.said
    assert run.said.count("validation loss") == run.said.count("questions loss") == 6, "the last step once"


def test_numbers_agree_with_one_another(runs, validation_data):
    run = validated(runs, validation_data, "dense", ONE).result().ok()
    line = lines(run)[-1]
    assert line["rows"] == 8, "two batches"
    assert line["loss"] == pytest.approx(math.log(line["perplexity"]), rel=1e-12), "averaged by token"
    for key, names in (("by_modality", {"CT", "text", "unstated"}), ("by_source", {"web", "unstated"})):
        groups = line[key].values()
        assert set(line[key]) == names and sum(group["tokens"] for group in groups) == line["trained_tokens"]
        total = math.fsum(group["loss"] * group["tokens"] for group in groups)
        assert total / line["trained_tokens"] == pytest.approx(line["loss"], rel=1e-12)
    assert line["trained_tokens"] < line["tokens"] and 0 < line["bits_per_byte"] < 8
    asked = lines(run, "questions")[-1]
    assert 0 < asked["num_questions"] <= QUESTIONS and 0 <= asked["accuracy"] <= 1
    left_out = QUESTIONS - asked["num_questions"]
    assert (f"options are not all in these rows: {left_out}," in run.said) == (left_out > 0)


def test_a_resume_validates_the_same(runs, validation_data, resumed):
    whole, again = validated(runs, validation_data, "dense", ONE).result(), resumed.result().ok()
    for name in ("validation", "questions"):
        for key in ("step", "loss", "perplexity", "bits_per_byte", "accuracy", "by_modality", "samples_crc"):
            assert column(again, key, name) == column(whole, key, name), (name, key)
    assert "step 0:" not in again.said, "a run that goes on has begun"


def test_the_best_export_stays_and_is_the_checkpoint(runs, validation_data):
    run = validated(runs, validation_data, "dense", ONE).result().ok()
    exports = run.folder / "exports"
    losses = dict(zip(column(run, "step"), column(run, "loss"), strict=True))
    best, other = sorted((3, 5), key=losses.get)
    assert sorted(path.name for path in exports.iterdir()) == ["best", "index.json", f"iter_{best:07d}"]
    assert json.loads((exports / "index.json").read_text()) == [
        {"step": step, "folder": f"iter_{step:07d}", "validation_loss": losses[step], "kept": step == best}
        for step in (3, 5)
    ]
    assert (exports / "best").resolve() == exports / f"iter_{best:07d}" and other in losses
    assert verify(exports / "best", run.checkpoints / f"iter_{best:07d}", tensors_only=True)["bit_equal"]
    assert {path.name for path in run.checkpoints.glob("iter_*")} == {"iter_0000003", "iter_0000005"}
