"""Columns read from files of lines that grow, are cut off, hold anything, and are rewritten."""

import json
import math

import pytest

from megatron_medx.status import appended
from megatron_medx.status.series import NUM_NEWEST, RankSeries, StepSeries, ValidationSeries


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lines.jsonl"


def add(path, *lines):
    with open(path, "a") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)


def steps_of(path):
    series = StepSeries(path)
    series.refresh()
    return series


def known(values):
    """With None for nan, so that lists can be compared."""
    return [None if math.isnan(value) else value for value in values]


def test_of_no_file_there_are_no_steps(path):
    series = steps_of(path)
    assert (list(series.steps), series.keys, series.sources, list(series.column("loss"))) == ([], [], {}, [])


def test_columns_have_a_value_a_step_and_nan_where_a_line_has_none(path):
    add(path, {"step": 1, "loss": 3}, {"step": 2, "loss": None, "lr": 0.5}, {"step": 3, "lr": 0.25, "skipped": True})
    series = steps_of(path)
    assert list(series.steps) == [1, 2, 3]
    assert known(series.column("loss")) == [3.0, None, None]
    assert known(series.column("lr")) == [None, 0.5, 0.25]
    assert known(series.column("of no line")) == [None, None, None]
    assert series.keys == ["step", "loss", "lr"]


def test_tokens_by_source_are_columns_of_their_own(path):
    add(path, {"step": 1, "source_tokens": {"reports": 7}}, {"step": 2, "source_tokens": {"replay": 3, "bad": "x"}})
    assert {name: known(values) for name, values in steps_of(path).sources.items()} == {
        "reports": [7.0, None],
        "replay": [None, 3.0],
    }


def test_what_is_no_step_is_passed_over(path):
    add(path, {"step": 1, "loss": 1.0}, "no json\n", "[1]\n", '"text"\n', "\n", {"loss": 2.0}, {"step": "2"})
    with open(path, "ab") as file:
        file.write(b"\xff\xfe\n\x00\x00\n")
    add(path, {"step": 2, "loss": 2.0})
    assert list(steps_of(path).column("loss")) == [1.0, 2.0]


def test_a_number_that_is_not_finite_is_a_gap(path):
    add(path, '{"step": 1, "loss": NaN, "grad_norm": 2.0}\n', '{"step": 2, "loss": Infinity, "grad_norm": 3.0}\n')
    series = steps_of(path)
    assert known(series.column("loss")) == [None, None] and list(series.column("grad_norm")) == [2.0, 3.0]


def test_a_line_that_is_being_written_is_read_once_it_is_whole(path):
    add(path, {"step": 1, "loss": 1.0}, '{"step": 2, "lo')
    series = steps_of(path)
    assert list(series.steps) == [1]
    add(path, 'ss": 2.0}\n')
    series.refresh()
    assert list(series.column("loss")) == [1.0, 2.0]


def test_only_what_was_added_is_read_again(path, monkeypatch):
    add(path, *({"step": step} for step in range(1, 101)))
    series = steps_of(path)
    parsed = []
    whole = appended.json_object
    monkeypatch.setattr(appended, "json_object", lambda line: parsed.append(line) or whole(line))
    series.refresh()
    add(path, {"step": 101})
    series.refresh()
    assert parsed == [b'{"step": 101}'] and series.steps[-1] == 101


@pytest.mark.parametrize("chunk_bytes", [1, 7, 40])
def test_lines_longer_than_a_chunk_are_read(path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(appended, "CHUNK_BYTES", chunk_bytes)
    add(path, *({"step": step, "loss": step / 4} for step in range(1, 9)))
    series = steps_of(path)
    assert list(series.column("loss")) == [step / 4 for step in range(1, 9)]
    add(path, {"step": 9, "loss": 5.0})
    series.refresh()
    assert series.column("loss")[-1] == 5.0 and len(series.steps) == 9


@pytest.mark.parametrize("num_after", [2, 8, 20])
def test_a_file_that_a_resume_rewrote_is_read_anew(path, num_after):
    """Shorter, as long and longer than before, in the same file as `open(path, "w")` leaves it."""
    add(path, *({"step": step, "loss": 1.5} for step in range(1, 9)))
    series = steps_of(path)
    path.write_text("")
    add(path, *({"step": step, "loss": 1.5 if step < 3 else 2.5} for step in range(1, num_after + 1)))
    series.refresh()
    assert list(series.steps) == list(range(1, num_after + 1))
    assert list(series.column("loss")) == [1.5] * 2 + [2.5] * (num_after - 2)


def test_a_file_that_vanishes_takes_its_numbers_along(path):
    add(path, {"step": 1, "loss": 1.0})
    series = steps_of(path)
    path.unlink()
    series.refresh()
    assert list(series.steps) == [] and series.keys == []


def test_a_repeated_step_replaces_what_was_there(path):
    add(path, *({"step": step, "loss": 1.0} for step in (1, 2, 3)), {"step": 2, "loss": 9.0})
    series = steps_of(path)
    assert list(series.steps) == [1, 2] and list(series.column("loss")) == [1.0, 9.0]


def ranks_of(path, max_lines=100):
    series = RankSeries(path, max_lines)
    series.refresh()
    return series


def test_a_few_lines_of_ranks_stay_as_they_are(path):
    add(path, {"step": 10, "busy_s": [1.0, None]}, {"step": 20, "busy_s": [2.0, 3.0, 4.0], "memory_gb": [1, 1, 1]})
    series = ranks_of(path)
    assert list(series.steps) == [10, 20] and series.num_ranks == 3
    assert [known(values) for values in series.by_line("busy_s")] == [[1.0, None], [2.0, 3.0, 4.0]]
    assert [list(values) for values in series.by_line("memory_gb")] == [[], [1.0, 1.0, 1.0]]


def test_of_many_lines_of_ranks_the_slow_one_is_kept(path):
    add(path, *({"step": step, "busy_s": [1.0, 9.0 if step == 37 else 1.0]} for step in range(1, 1001)))
    series = ranks_of(path, max_lines=10)
    assert len(series.steps) <= 10 and series.steps[-1] == 1000
    assert max(values[1] for values in series.by_line("busy_s")) == 9.0
    assert max(values[0] for values in series.by_line("busy_s")) == 1.0
    assert [line["step"] for line in series.newest] == list(range(1001 - NUM_NEWEST, 1001))


def test_ranks_read_in_pieces_are_the_same(path):
    at_once, growing = RankSeries(path, 6), RankSeries(path, 6)
    for step in range(1, 60):
        add(path, {"step": step, "busy_s": [step % 7, step % 5]})
        growing.refresh()
    at_once.refresh()
    assert (growing.steps, growing.by_line("busy_s")) == (at_once.steps, at_once.by_line("busy_s"))


def test_ranks_that_repeat_steps_replace_them(path):
    add(path, *({"step": step, "busy_s": [1.0]} for step in (10, 20, 30)), {"step": 20, "busy_s": [5.0]})
    series = ranks_of(path)
    assert list(series.steps) == [10, 20] and [line["step"] for line in series.newest] == [10, 20]


def test_validations_are_told_apart_by_set_and_an_old_line_is_of_the_main_one(path):
    add(
        path, {"step": 5, "loss": 3.0}, {"step": 5, "set": "chest", "loss": 4.0}, {"step": 10, "loss": 2.0}, {"loss": 1}
    )
    series = ValidationSeries(path, "validation")
    series.refresh()
    assert {name: [line["step"] for line in lines] for name, lines in series.sets.items()} == {
        "validation": [5, 10],
        "chest": [5],
    }
    add(path, {"step": 10, "loss": 1.5})
    series.refresh()
    assert [line["loss"] for line in series.sets["validation"]] == [3.0, 1.5]
