"""A step whose loss is NaN, as a user meets it: `image_std` of the processor is 0, and one sample has an image.

Twelve samples, four a step: the only image is in step 2 of 3. Every step is saved.
"""

import json

import pytest
import torch
from agreement import LOSS_TOLERANCE, assert_clear_error, assert_same_losses, first_moments, weights
from grids import ONE, SMALL
from medx_runs import tracker
from small_data import build_divided_by_zero, conversation

THREE_STEPS = (
    *SMALL, "data.packing=false", "model.vision.deepstack_layers=0,2", "run.seed=26", "training.steps=3",
    "checkpoint.every_steps=1",
)  # fmt: skip

STOPPED = (ONE, "tp2 pp2")
"""On the second, ranks of the first stage have no loss to look at."""

SKIPPED = (ONE, "tp2 pp2", "dp2")
"""On the third, one rank has only finite losses."""


def divided_by_zero(runs):
    """A data folder with one image, which becomes infinite when it is normalized."""
    texts = [conversation(f"text-{n}", f"Name finding {n}.", "Fracture. " * (1 + n % 4)) for n in range(11)]
    records = [conversation("poison", "What is shown?", "Noise.", ("square",)), *texts]
    return build_divided_by_zero(runs.data / "source", runs.folder / "data_divided_by_zero", records)


def words(runs, on_bad_loss):
    """What is the run's own, after the recipe or run.yaml."""
    data = runs.once("data divided by zero", divided_by_zero).result()
    return f"data.path={data}", f"training.on_bad_loss={on_bad_loss}"


def trained(runs, on_bad_loss, grid):
    """Three steps over the poisoned data."""
    return runs.train(f"bad step {on_bad_loss} {grid}", *THREE_STEPS, *words(runs, on_bad_loss), grid=grid)


def stop_then_skip(runs):
    """One process that stopped, told to go on and skip."""
    stopped = runs.once(f"stop {ONE}", lambda runs: trained(runs, "stop", ONE)).result()
    return runs.resume(stopped, "stopped_then_skipped", *words(runs, "skip"))


@pytest.fixture(scope="module", autouse=True)
def flows(runs):
    """All runs of this module, started at once."""
    wanted = [("stop", grid) for grid in STOPPED] + [("skip", grid) for grid in SKIPPED]
    started = {
        (what, grid): runs.once(f"{what} {grid}", lambda runs, what=what, grid=grid: trained(runs, what, grid))
        for what, grid in wanted
    }
    return started | {"resumed": runs.submit(stop_then_skip)}


def bad_steps(run):
    """Lines of bad_steps.jsonl, as strict JSON."""
    return [json.loads(line, parse_constant=pytest.fail) for line in (run.folder / "bad_steps.jsonl").open()]


THE_BAD_STEP = {"step": 2, "what": "loss", "loss": "nan", "sample_ids": ["poison"]}


@pytest.mark.parametrize("grid", STOPPED)
def test_the_run_stops_before_anything_is_saved_and_names_the_sample(grid, flows):
    run = flows["stop", grid].result()
    assert_clear_error(run, "step 2: loss nan in samples poison", "training.on_bad_loss=skip", "--resume", "of step 1")
    assert run.said.count("found:") == 1, "one rank speaks for all"
    assert bad_steps(run) == [THE_BAD_STEP]
    assert run.column("step") == [1]
    assert tracker(run.folder) == "1"
    assert [path.name for path in run.checkpoints.glob("iter_*")] == ["iter_0000001"]


@pytest.mark.parametrize("grid", SKIPPED)
def test_a_skipped_step_changes_nothing_and_the_run_goes_on(grid, flows):
    run = flows["skip", grid].result().ok()
    assert bad_steps(run) == [THE_BAD_STEP]
    assert "skipped step 2: loss nan in samples poison" in run.said
    first, second, third = run.metrics()
    assert second["loss"] is None and second["grad_norm"] is None and second["skipped"] is True
    assert "skipped" not in first and "skipped" not in third
    assert first["lr"] < second["lr"] == third["lr"], "warm-up waits for the step that was left out"
    for tensors in (weights, first_moments):
        before, bad, after = (tensors(run, step) for step in (1, 2, 3))
        assert before and before.keys() == bad.keys() == after.keys()
        assert not [key for key in before if not torch.equal(before[key], bad[key])]
        assert any(not torch.equal(bad[key], after[key]) for key in bad)
        assert all(tensor.isfinite().all() for tensor in after.values())


def test_grids_agree_on_what_follows_a_skipped_step(flows):
    losses = {grid: flows["skip", grid].result().ok().column("loss") for grid in SKIPPED}
    assert_same_losses({grid: [first, third] for grid, (first, _, third) in losses.items()}, LOSS_TOLERANCE)


def test_a_run_that_stopped_goes_on_as_if_it_had_skipped(flows):
    resumed, skipped = flows["resumed"].result().ok(), flows["skip", ONE].result().ok()
    for key in ("step", "loss", "grad_norm", "lr"):
        assert resumed.column(key) == skipped.column(key), key
    ours, theirs = weights(resumed, 3), weights(skipped, 3)
    assert not [key for key in theirs if not torch.equal(ours[key], theirs[key])]
    assert bad_steps(resumed) == [THE_BAD_STEP, THE_BAD_STEP], "stopped at it, then skipped it"
