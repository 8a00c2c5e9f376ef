"""Validation and exports beside training: they change nothing of it, and validation is the same on every grid.

The same runs without either are those of test_grids.py. Worst difference of a validation loss from one process
(2026-11-23): 3.0e-7, dense tp2 cp2.
"""

import json

import pytest
import small_data
import torch
from agreement import LOSS_TOLERANCE, assert_same_losses
from grids import ONE, SCENARIOS, SMALL
from medx_runs import stopped_at

from megatron_medx.checkpoint.megatron_files.torch_dist import TorchDistFolder
from megatron_medx.checkpoint.verify import verify

GRIDS = (("dense", "pp2 vpp2"), ("dense", "tp2 cp2"), ("experts", "dp2 ep2"))
"""Scenario and grid: each axis, and chunks of stages."""

NAMES = ("dense", "experts")


@pytest.fixture(scope="module")
def validation_data(data, tmp_path_factory):
    """Nine rows, two batches and one left over: the small data folder's images beside texts of its own."""
    folder = tmp_path_factory.mktemp("validation")
    source = folder / "source"
    source.mkdir()
    for name in ("images", "processor"):
        (source / name).symlink_to(data / "source" / name)
    asked = [
        small_data.conversation(f"asked-{number}", "How many?", f"{len(images)} are shown, or none.", images)
        for number, images in enumerate((*small_data.PICTURED, (), ()))
    ]
    told = [
        {"id": f"told-{number}", "content": [{"type": "text", "text": "The heart is of normal size. " * (20 + number)}]}
        for number in range(8)
    ]
    return small_data.build(source, folder, asked + told)


def validated(runs, validation_data, name, grid):
    """The scenario's run, validated after steps 3 and 5 and after others; both saved checkpoints are exported."""
    words = [f"data.validation_path={validation_data}", "training.validate_every_steps=1"]
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


def lines(run):
    return [json.loads(line) for line in (run.folder / "validation.jsonl").read_text().splitlines()]


def column(run, key):
    return [line[key] for line in lines(run)]


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
def test_every_grid_finds_the_same_loss_on_the_same_rows(name, grid, runs, validation_data):
    one, run = (validated(runs, validation_data, name, where).result().ok() for where in (ONE, grid))
    for key in ("step", "rows", "tokens", "samples_crc"):
        assert column(run, key) == column(one, key), key
    assert column(one, "step") == [1, 2, 3, 4, 5] and len(set(column(one, "samples_crc"))) == 1
    assert set(column(one, "rows")) == {8}, "two batches"
    assert_same_losses({ONE: column(one, "loss"), grid: column(run, "loss")}, LOSS_TOLERANCE)
    assert f"step 5: validation loss {column(run, 'loss')[-1]:.4f} over" in run.said
    assert run.said.count("validation loss") == 5, "the last step once"


def test_a_resume_validates_the_same(runs, validation_data, resumed):
    whole, again = validated(runs, validation_data, "dense", ONE).result(), resumed.result().ok()
    for key in ("step", "loss", "samples_crc"):
        assert column(again, key) == column(whole, key), key


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
