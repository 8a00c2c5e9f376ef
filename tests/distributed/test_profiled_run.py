"""Runs whose steps are profiled: what is left, that it adds up, and that the run is the same as without."""

import json

import pytest
from grids import SCENARIOS, SMALL
from medx_runs import stopped_at

from megatron_medx.run_folder import events
from megatron_medx.training.profiling.trace import read_trace
from megatron_medx.training.profiling.vocabulary import MARK

GRIDS = ("tp2", "pp2")
STEPS = (2, 3)

ON_EVERY_RANK = {"attention", "MLP", "decoder, rest", "backward, rest", "gradient reduction", "optimizer", "data wait"}
ON_THE_FIRST_STAGE = {"image exchange", "vision tower", "mergers", "embedding"}
ON_THE_LAST_STAGE = {"output layer", "loss"}


def profiled(runs, grid):
    """Scenario `dense` with steps 2 and 3 of five profiled."""
    title = f"dense profiled on {grid}"
    words = (*SMALL, *SCENARIOS["dense"], "training.profile=2:3")
    return runs.once(title, lambda runs: runs.train(title, *words, grid=grid))


def resume_from_3(runs, profile):
    """The run on one process, dead with step 3 saved last, goes on with a profile."""
    whole = runs.scenario("dense").result().ok()
    title = f"profiled_on_{profile.replace(':', '_')}"
    return runs.resume(stopped_at(3, whole, runs.folder / f"before_{title}"), title, f"training.profile={profile}")


@pytest.fixture(scope="module", autouse=True)
def resumed(runs):
    """Starts everything of this module; runs that went on from step 3, by their profile."""
    for grid in GRIDS:
        runs.scenario("dense", grid)
        profiled(runs, grid)
    return {profile: runs.submit(resume_from_3, profile) for profile in ("2:4", "2:3")}


def summary(run, rank):
    return json.loads((run.folder / "profile" / f"summary_rank_{rank}.json").read_text())


def marks(run, rank):
    """Parts in a rank's trace, each as often as it was entered."""
    trace = read_trace(run.folder / "profile" / f"trace_rank_{rank}.json.gz")
    return [event["name"].removeprefix(MARK) for event in trace if event["name"].startswith(MARK)]


@pytest.mark.parametrize("grid", GRIDS)
def test_training_is_bit_for_bit_what_it_is_without(grid, runs):
    without, with_it = runs.scenario("dense", grid).result().ok(), profiled(runs, grid).result().ok()
    for key in ("step", "loss", "grad_norm", "lr", "samples_crc"):
        assert with_it.column(key) == without.column(key), key


@pytest.mark.parametrize("grid", GRIDS)
def test_every_rank_leaves_a_trace_of_these_steps_with_their_parts(grid, runs):
    run = profiled(runs, grid).result().ok()
    for rank in (0, 1):
        found = marks(run, rank)
        expected = ON_EVERY_RANK | (ON_THE_FIRST_STAGE if grid == "tp2" or rank == 0 else set())
        expected |= ON_THE_LAST_STAGE if grid == "tp2" or rank == 1 else set()
        assert expected <= set(found), expected - set(found)
        assert found.count("step") == 2, "of the other steps there is nothing"
        assert ("pipeline transfer" in found) == (grid == "pp2")
        assert ("loss" in found) == (grid == "tp2" or rank == 1)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_parts_add_up_to_the_steps(grid, runs):
    run = profiled(runs, grid).result().ok()
    timed = [line["step_time_s"] for line in run.metrics() if line["step"] in STEPS]
    for rank in (0, 1):
        of_rank = summary(run, rank)
        assert (of_rank["first_step"], of_rank["last_step"], len(of_rank["step_s"])) == (2, 3, 2)
        in_parts = sum(part["forward_s"] + part["backward_s"] for part in of_rank["parts"].values())
        assert in_parts == pytest.approx(sum(of_rank["step_s"]), rel=1e-6)
        assert set(of_rank["parts"]) <= set(marks(run, rank)) | {"other", "gradient accumulation"}
        for name in ("attention", "MLP"):
            assert of_rank["parts"][name]["forward_s"] > 0 and of_rank["parts"][name]["backward_s"] > 0
    reporter = summary(run, 1)["step_s"]  # the range of a step lies around what metrics.jsonl times
    assert all(inside <= around for inside, around in zip(timed, reporter, strict=True)), (timed, reporter)


@pytest.mark.parametrize("grid", GRIDS)
def test_people_are_told(grid, runs):
    run = profiled(runs, grid).result().ok()
    text = (run.folder / "profile" / "summary.txt").read_text()
    assert text.startswith("steps 2 to 3 under PyTorch's profiler") and "mean of 2 ranks" in text
    assert "works longest" in text and "longest on rank" in text
    assert "steps 2 to 3 are profiled: " in run.said
    told = [event for event in events.read(run.folder) if event["event"] == "profiled"]
    assert [(event["first_step"], event["last_step"], event["ranks"]) for event in told] == [(2, 3, 2)]


def test_what_a_run_without_profile_leaves(runs):
    assert not (runs.scenario("dense", "tp2").result().ok().folder / "profile").exists()


def test_a_resume_amid_the_steps_profiles_the_rest(resumed):
    run = resumed["2:4"].result().ok()
    assert marks(run, 0).count("step") == 1
    assert (summary(run, 0)["first_step"], summary(run, 0)["last_step"]) == (4, 4)


def test_a_resume_behind_them_profiles_nothing(resumed):
    run = resumed["2:3"].result().ok()
    assert run.column("step") == [1, 2, 3, 4, 5] and not (run.folder / "profile").exists()
