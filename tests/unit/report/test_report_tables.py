"""Tables of the page: times, ranks, events, data, answers."""

import json
import time

import numpy as np
import pytest
from rich_run import write_rich_run

from megatron_medx.report import data_report, happened, samples, settings, timings
from megatron_medx.report.record import read_record
from megatron_medx.report.tables import NOTHING, number


@pytest.fixture
def folder(tmp_path):
    return write_rich_run(tmp_path / "run")


def record(folder):
    return read_record(folder, time.time())


def append(folder, name, *lines):
    with open(folder / name, "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", NOTHING),
        (float("nan"), "", NOTHING),
        ("high", "", NOTHING),
        (True, "", NOTHING),
        (0.25, "%", "25.00"),
        (12_345, "", "12,345"),
        (12_345.6, "", "12,346"),
        (1.23456, "", "1.235"),
        (0.0000123456, "", "1.235e-05"),
    ],
)
def test_numbers_as_they_are_shown(value, unit, text):
    assert number(value, unit) == text


def test_where_the_time_went(folder):
    rows = {row[0].label: row[1:] for row in timings.time_table(record(folder)).rows}
    assert rows["saves"] == ["2 s", number(2.2 / 70.2165, "%"), "2 saves"] or rows["saves"][0] == "2 s"
    assert rows["starts"][0] == "10 s" and rows["starts"][2] == "2 launches"
    assert rows["validation, all"][0] == "21 s" and rows["repeated steps"][2] == "14 steps"
    assert sum(float(row[1]) for row in rows.values()) == pytest.approx(100, abs=0.05)


def test_a_late_rank_stands_out(folder):
    run = record(folder)
    lateness = timings.rank_lateness(run)
    assert lateness.shape == (4, 12)
    assert lateness[2] == pytest.approx(50) and lateness[0] == pytest.approx(0)
    table = timings.rank_table(run)
    assert table.rows[0][:3] == ["2", "0.6", "50.00"] and len(table.rows) == 4


def test_ranks_that_came_later_and_lines_without_numbers_are_gaps(folder):
    append(folder, "ranks.jsonl", {"step": 61, "busy_s": [None, 0.4]}, {"step": 62, "busy_s": [0.4] * 6})
    lateness = timings.rank_lateness(record(folder))
    assert lateness.shape == (6, 14)
    assert np.isnan(lateness[4:, 0]).all() and np.isnan(lateness[0, 12]) and lateness[5, 13] == 0


def test_one_rank_is_not_compared(tmp_path):
    run = record(write_rich_run(tmp_path / "lone", num_ranks=1))
    assert timings.rank_lateness(run) is None and len(timings.rank_table(run).rows) == 1


def test_events_are_told_newest_first_and_routine_ones_counted(folder):
    time_now = "2026-11-23T07:00:00+00:00"
    append(folder, "events.jsonl", *({"time": time_now, "event": "saved", "step": step} for step in range(70, 80)))
    table = happened.event_table(record(folder))
    assert [row[1] for row in table.rows].count("saved") == 5
    assert table.rows[0][2] == "step 79" and table.rows[-1][1] == "job_started"
    assert table.note.startswith("7 events more")


def test_the_timeline_has_launches_as_bars_and_trouble_apart(folder):
    kinds, dots, bars = happened.timeline(record(folder))
    assert kinds == ["trouble", "saves", "launches", "jobs"]
    assert dots["kind"].count("trouble") == 2 and len(dots["text"]) == 10
    assert [end - start for start, end in zip(bars["start_ms"], bars["end_ms"], strict=True)] == [22_000, 26_000]


def test_restarts_are_marked_where_they_went_on_from(folder):
    assert happened.restarts(record(folder)) == [20]


def test_settings_as_in_the_parent_are_said_to_be(folder):
    run = record(folder)
    table = settings.difference_table(run, run)
    assert not table.rows and table.note == "Every field is as in the parent run."


def test_a_recipe_of_another_version_is_not_compared_with(folder):
    run = record(folder)
    run.config.run.recipe = "gone"
    assert settings.difference_table(run, None).note == "There is no recipe gone as shipped to compare with."


def test_planned_shares_are_means_over_the_run_so_far(folder):
    counts = {"/data/a/train": {"num_tokens": 10}, "/data/b/train": {"num_tokens": 30}}
    pieces = {"source 0: weight": [[0, 0.0], [60_000, 1.0]], "source 1: weight": [[0, 1.0], [60_000, 0.0]]}
    lines = [{"step": step, "source_tokens": {"a/train": 750, "b/train": 250}} for step in range(1, 31)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "data" / "plan.json").write_text(json.dumps({"counts": counts, "pieces": pieces}))
    table = data_report.mixture_table(record(folder))
    assert table.rows == [["a/train", "25.00", "75.00", "22,500"], ["b/train", "75.00", "25.00", "7,500"]]
    (folder / "data" / "plan.json").write_text(json.dumps({"counts": counts, "pieces": {}}))
    assert [row[1] for row in data_report.mixture_table(record(folder)).rows] == ["25.00", "75.00"]


def test_answers_are_the_first_the_last_and_some_between(folder):
    found = samples.answered_samples(record(folder))["validation"]
    assert [sample.id for sample in found] == ["sample-1", "sample-2"]
    assert [step for step, _ in found[0].answers] == [0, 10, 20, 40, 50, 60]
    assert found[0].answers[-1] == (60, "answer of step 60") and found[0].expected == "a normal chest"


def test_pictures_that_are_too_large_stay_where_they_are(folder):
    assert len(samples.pictures(record(folder))) == 1
    (folder / "preview.png").write_bytes(b"x" * (samples.MAX_PICTURE_BYTES + 1))
    assert samples.pictures(record(folder)) == []
