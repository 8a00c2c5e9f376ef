"""What a run writes beside its loss, on real ranks: parts, sources, ranks.jsonl, trackers; the same on every grid.

Rates and norms by part are also compared by test_grids.py, of all its grids.
"""

import json
import math
import shutil

import pytest
from agreement import NORM_TOLERANCE
from grids import ONE, SCENARIOS, SMALL
from medx_runs import stopped_at

from megatron_medx.run_folder.quantities import PARTS, RANKS
from megatron_medx.training.step_lines import read_metrics

GRID = "tp2 pp2 dp2"
WORDS = ("log.ranks_every_steps=2", "log.tensorboard=true", "optimizer.merger_lr=1e-3")


@pytest.fixture(scope="module")
def mixture(data, tmp_path_factory):
    """The small data folder, and a copy of it that gives a quarter of the tokens."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "reports").symlink_to(data, target_is_directory=True)
    shutil.copytree(data, folder / "replay")
    sources = [{"path": "reports", "weight": 0.75}, {"path": "replay", "weight": 0.25}]
    (folder / "mixture.yaml").write_text(json.dumps({"sources": sources}))
    return folder / "mixture.yaml"


def fed_by(mixture):
    """The mixture, and the processor of one of its folders."""
    return f"data.path={mixture}", f"data.processor={mixture.parent}/replay/processor"


def told(runs, mixture, grid):
    """Five steps of the dense scenario on the mixture, with ranks gathered every two; mergers have their own rate."""
    title = f"told on {grid}"
    words = [*SMALL, *SCENARIOS["dense"], *WORDS, *fed_by(mixture), f"log.mlflow_uri=file:{runs.folder / 'mlflow'}"]
    return runs.once(title, lambda runs: runs.train(title, *words, grid=grid))


def resume_from_3(runs, mixture):
    """The run on the grid, dead after its last step with step 3 saved last, goes on."""
    whole = told(runs, mixture, GRID).result().ok()
    stopped = stopped_at(3, whole, runs.folder / "told_stopped_at_3")
    return runs.resume(stopped, "told_on", *WORDS, *fed_by(mixture), grid=GRID)


@pytest.fixture(scope="module", autouse=True)
def resumed(runs, mixture):
    """Starts everything of this module; what comes of the resume."""
    for grid in (ONE, GRID):
        told(runs, mixture, grid)
    runs.scenario("merger alone", ONE)
    return runs.submit(resume_from_3, mixture)


def rank_lines(run):
    return read_metrics(run.folder / "ranks.jsonl")


@pytest.mark.parametrize("grid", [ONE, GRID])
def test_parts_make_up_the_norm(grid, runs, mixture):
    for line in told(runs, mixture, grid).result().ok().metrics():
        norms = [line[f"grad_norm_{part}"] for part in PARTS]
        assert all(norm > 0 for norm in norms)
        assert math.hypot(*norms) == pytest.approx(line["grad_norm"], rel=1e-6)


def test_each_part_has_its_rate(runs, mixture):
    for line in told(runs, mixture, GRID).result().ok().metrics()[1:]:
        assert line["lr_vision"] == line["lr_language"] == line["lr"] > 0
        assert line["lr_merger"] == pytest.approx(line["lr"] / 2)


def test_a_frozen_part_has_neither_norm_nor_rate(runs):
    for line in runs.scenario("merger alone", ONE).result().ok().metrics():
        assert line["grad_norm_merger"] == pytest.approx(line["grad_norm"]) and line["lr_merger"] == line["lr"]
        for part in ("vision", "language"):
            assert line[f"grad_norm_{part}"] is None and line[f"lr_{part}"] is None


@pytest.mark.parametrize(("grid", "num_ranks"), [(ONE, 1), (GRID, 8)])
def test_every_rank_tells_of_itself(grid, num_ranks, runs, mixture):
    run = told(runs, mixture, grid).result().ok()
    steps = {line["step"]: line for line in run.metrics()}
    assert [line["step"] for line in rank_lines(run)] == [2, 4]
    for line in rank_lines(run):
        assert list(line) == list(RANKS)
        assert all(len(line[key]) == num_ranks for key in RANKS if key != "step")
        assert all(0 < busy < time for busy, time in zip(line["busy_s"], line["step_time_s"], strict=True))
        assert all(0.01 < memory < 100 for memory in line["memory_gb"])
        step = steps[line["step"]]  # the reporting rank is the last
        assert (line["step_time_s"][-1], line["data_wait_s"][-1]) == (step["step_time_s"], step["data_wait_s"])


def test_a_resume_drops_what_it_repeats(runs, mixture, resumed):
    run = resumed.result().ok()
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in rank_lines(run)] == [2, 4]
    before = {line["step"]: line for line in rank_lines(told(runs, mixture, GRID).result())}
    now = {line["step"]: line for line in rank_lines(run)}
    assert now[2] == before[2] and now[4] != before[4], "the step of before the checkpoint stays, the later one is new"


def test_tokens_are_told_apart_by_data_folder(runs, mixture):
    one, run = (told(runs, mixture, grid).result().ok() for grid in (ONE, GRID))
    assert run.column("source_tokens") == one.column("source_tokens")
    for line in one.metrics():
        assert list(line["source_tokens"]) == ["reports", "replay"]
        assert sum(line["source_tokens"].values()) == line["tokens"]
    replayed = sum(line["source_tokens"]["replay"] for line in one.metrics())
    assert 0.1 < replayed / sum(one.column("tokens")) < 0.4, "planned: a quarter"


def test_parts_and_rates_are_those_of_one_process(runs, mixture):
    one, run = (told(runs, mixture, grid).result().ok() for grid in (ONE, GRID))
    for part in PARTS:
        assert run.column(f"grad_norm_{part}") == pytest.approx(one.column(f"grad_norm_{part}"), rel=NORM_TOLERANCE)
        assert run.column(f"lr_{part}") == one.column(f"lr_{part}")


def test_a_resume_goes_on_with_the_same_tracked_run(runs, mixture, resumed):
    """MLflow's folder holds one run for each of the three run folders' ids; TensorBoard's second file purges step 4."""
    run, whole = resumed.result().ok(), told(runs, mixture, GRID).result()
    ids = [json.loads((one.folder / "trackers.json").read_text())["mlflow"] for one in (whole, run)]
    assert ids[0] == ids[1], "the copied folder is the same run"
    (losses,) = runs.folder.glob(f"mlflow/*/{ids[0]}/metrics/train/loss")
    steps = [int(line.split()[2]) for line in losses.read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 4, 5]
    assert len(list(run.folder.glob("tensorboard/events.out.tfevents.*"))) == 2
    assert "tracker_failed" not in (run.folder / "events.jsonl").read_text()
