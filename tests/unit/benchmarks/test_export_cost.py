"""The benchmark of exports: what it sees of a run, its figures by hand, its last line, its exit code."""

import json

import pytest

from benchmarks import export_cost
from benchmarks.export_cost import Seen, compare


def seen(step_ends_s, ended_s, under_way=None, step_s=1.0):
    ends = dict(enumerate(step_ends_s, 1))
    return Seen(ends, under_way or {}, ended_s, dict.fromkeys(ends, step_s))


def test_figures_by_hand():
    """Of steps that end at 1, 2, 4, 6 and 7, the third and the fourth ran beside the conversion from 2.5 to 5.5."""
    found = compare(
        seen([1, 2, 4, 6, 7], 12.0, {2: [2.5, 5.5], 5: [7.1, 11.0]}, step_s=1.5), seen([1, 2, 3, 4, 5], 6.0)
    )
    assert found == {
        "cost": 0.5,
        "cost_while_under_way": 0.5,
        "training_s": 6,
        "training_without_s": 4,
        "steps_beside_exports": 2,
        "export_s": 3.0,
        "wait_at_end_s": 4.0,
    }


def test_a_run_is_looked_at_as_it_goes_on(tmp_path):
    found, metrics = Seen(), tmp_path / "metrics.jsonl"
    export_cost.look(tmp_path, metrics, found)
    assert not found.step_ended_s
    metrics.write_text('{"step": 1}\n{"step": 2}\n{"st')
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "export_2.log").touch()
    export_cost.look(tmp_path, metrics, found)
    export_cost.look(tmp_path, metrics, found)
    assert list(found.step_ended_s) == [1, 2]
    start_s, later_s = found.under_way[2]
    (tmp_path / "exports" / "iter_0000002").mkdir(parents=True)
    export_cost.look(tmp_path, metrics, found)
    assert found.under_way[2] == [start_s, later_s] and later_s > start_s


@pytest.mark.parametrize(("slower", "code"), [(1.005, 0), (1.02, 1)])
def test_a_missed_target_is_exit_code_1(capsys, monkeypatch, tmp_path, slower, code):
    def train(folder, words):
        with_exports = any("export_every_steps=4" in word for word in words)
        assert "checkpoint.every_steps=4" in words and "training.steps=8" in words
        return seen([(slower if with_exports else 1.0) * step for step in range(1, 9)], 10.0)

    monkeypatch.setattr(export_cost, "train", train)
    monkeypatch.setattr(export_cost, "DATA", tmp_path)
    (tmp_path / "manifest.json").touch()
    monkeypatch.chdir(tmp_path)
    assert export_cost.main(["--steps", "8", "--rounds", "3"]) == code
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    assert summary["reached"] is (code == 0) and ("MISSED" in printed) is (code == 1)
    assert summary["cost"] == pytest.approx(slower - 1)
