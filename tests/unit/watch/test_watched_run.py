"""What is taken from the files of a run: percentiles, mixture, the slowest rank, and what a damaged folder leaves."""

import json

import pytest

from megatron_medx.errors import ConfigError
from megatron_medx.watch.numbers import rows
from megatron_medx.watch.watched_run import WatchedRun


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def looked_at(folder):
    run = WatchedRun(folder)
    run.look(0.0)
    return run


def texts(run):
    return {row.label: row.texts[0] for row in rows([run])}


def test_percentiles_are_nearest_ranks_of_the_last_steps(run_folder):
    write(
        run_folder / "metrics.jsonl",
        [{"step": step, "step_time_s": 99.0 if step <= 500 else step - 500} for step in range(1, 1501)],
    )
    run = looked_at(run_folder)
    assert [run.percentile("step_time_s", percent) for percent in (50, 90, 99)] == [500, 900, 990]
    assert run.percentile("of no line", 50) is None


def test_the_slowest_rank_is_the_one_with_the_largest_median(run_folder):
    """Rank 2 was slowest once, rank 1 always by half a second; a launch before had four ranks."""
    lines = [{"step": 10, "busy_s": [9.0, 9.0, 9.0, 99.0]}]
    lines += [{"step": 20 + step, "busy_s": [2.0, 2.5, 8.0 if step == 3 else 2.0]} for step in range(7)]
    write(run_folder / "ranks.jsonl", lines)
    run = looked_at(run_folder)
    assert run.slowest_rank() == (1, 0.5) and texts(run)["slowest rank"] == "1, +0.5 s"


@pytest.mark.parametrize("busy_s", [[2.0], [], None, "late", [None, 1.0]])
def test_without_times_of_several_ranks_none_is_slowest(run_folder, busy_s):
    write(run_folder / "ranks.jsonl", [{"step": 10, "busy_s": busy_s}])
    assert looked_at(run_folder).slowest_rank() is None


def test_the_mixture_stands_beside_its_plan(run_folder):
    tokens = {"reports": 300, "replay": 100}
    write(run_folder / "metrics.jsonl", [{"step": 1, "tokens": 400, "source_tokens": tokens}])
    assert texts(looked_at(run_folder)) | {
        "mixture, reports": "75.0, plan 55.0",
        "mixture, replay": "25.0, plan 20.0",
    } == (texts(looked_at(run_folder)))
    (run_folder / "data" / "plan.json").write_text("{")
    assert texts(looked_at(run_folder))["mixture, reports"] == "75.0"


def test_parts_are_told_where_they_differ(run_folder):
    same = {"lr": 0.5, "lr_vision": None, "lr_merger": 0.5, "lr_language": 0.5}
    write(run_folder / "metrics.jsonl", [{"step": 1, **same, "grad_norm": 5.0, "grad_norm_merger": 3.0}])
    shown = texts(looked_at(run_folder))
    assert shown["learning rate"] == "0.5" and "learning rate, mergers" not in shown
    assert shown["gradient norm, mergers"] == "3" and "gradient norm, tower" not in shown


def test_model_flops_stand_in_for_mfu_where_that_is_unknown(run_folder):
    assert "model TFLOP/s" not in texts(looked_at(run_folder)) and texts(looked_at(run_folder))["MFU"]
    write(run_folder / "metrics.jsonl", [{"step": 1, "mfu": None, "model_tflops_per_s": 0.0123}])
    shown = texts(looked_at(run_folder))
    assert shown["model TFLOP/s"] == "0.0123" and "MFU" not in shown


def test_nothing_is_read_again_while_no_file_changes(run_folder, monkeypatch):
    run = looked_at(run_folder)
    report = run.report
    run.look(5.0)
    assert run.report is report
    run.look(11.0)  # its state depends on the time, too
    assert run.report is not report
    report = run.report
    with open(run_folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2001, "loss": 1.0}\n')
    run.look(12.0)
    assert run.report is not report and run.steps.steps[-1] == 2001


def test_what_was_read_stays_when_the_folder_goes(run_folder, tmp_path):
    run = looked_at(run_folder)
    run_folder.rename(tmp_path / "away")
    with pytest.raises(ConfigError, match="no folder"):
        run.look(1.0)
    assert "no folder" in run.problem and run.newest("loss") and run.report
    (tmp_path / "away").rename(run_folder)
    run.look(2.0)
    assert run.problem is None


@pytest.mark.parametrize("name", ["ranks.jsonl", "metrics.jsonl", "validation.jsonl"])
def test_a_file_that_cannot_be_read_is_refused_plainly(run_folder, name):
    (run_folder / name).unlink()
    (run_folder / name).mkdir()
    with pytest.raises(ConfigError, match="directory") as refusal:
        looked_at(run_folder)
    assert name in refusal.value.found
