"""Planned shares from the plan in a run folder, along the run and without weights; damaged plans say nothing."""

import json

import pytest

from megatron_medx.status.planned_mixture import planned_shares


def plan(folder, counts, *weights):
    pieces = {f"source {number}: weight": knots for number, knots in enumerate(weights)}
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "plan.json").write_text(json.dumps({"pieces": pieces, "counts": counts}))


COUNTS = {"/data/a": {"num_tokens": 30}, "/data/b": {"num_tokens": 10}}


@pytest.mark.parametrize(("tokens", "share"), [(0, 0.2), (25, 0.3), (100, 0.6), (1e9, 0.6)])
def test_weights_are_linear_between_their_knots(tmp_path, tokens, share):
    plan(tmp_path, COUNTS, [[0, 0.2], [100, 0.6]], [[0, 0.8], [100, 0.4]])
    assert planned_shares(tmp_path, tokens) == pytest.approx({"a": share, "b": 1 - share})


def test_without_weights_shares_are_in_proportion_to_tokens(tmp_path):
    plan(tmp_path, COUNTS, None, None)
    assert planned_shares(tmp_path, 0) == pytest.approx({"a": 0.75, "b": 0.25})


def test_sources_are_called_as_metrics_call_them(tmp_path):
    plan(tmp_path, {"one/train": {"num_tokens": 1}, "two/train": {"num_tokens": 1}}, [[0, 0.5]], [[0, 0.5]])
    assert list(planned_shares(tmp_path, 0)) == ["one/train", "two/train"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"counts": {"a": {}}, "pieces": {}}',
        '{"counts": {"a": {}}, "pieces": {"source 0: weight": []}}',
    ],
)
def test_a_plan_that_is_no_plan_says_nothing(tmp_path, text):
    assert planned_shares(tmp_path, 0) == {}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "plan.json").write_text(text)
    assert planned_shares(tmp_path, 0) == {}
