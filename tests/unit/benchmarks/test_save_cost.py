"""The benchmark of saving: its figures by hand, what it reads of a log, its last line, its exit code."""

import json

import pytest

from benchmarks import save_cost
from benchmarks.export_cost import Seen
from benchmarks.save_cost import compare, halves_s, timer_s


def seen(step_s):
    """A run whose steps, from the second one on, take so many seconds."""
    ends, now_s = {1: 0.0}, 0.0
    for step, took_s in enumerate(step_s, 2):
        now_s += took_s
        ends[step] = now_s
    return Seen(ends, {}, now_s, {})


def test_figures_by_hand(monkeypatch):
    """Two saves, after steps 4 and 8; each takes 3 s from the two steps behind it, and the rival is twice as slow."""
    saving = seen([1, 1, 1, 3, 2, 1, 1, 2, 3, 1, 1])
    rival = seen([2] * 11)
    assert halves_s(saving, 4, 2) == (10.0, 4.0) and halves_s(rival, 4, 2) == (8.0, 8.0)
    found = compare(saving, rival, 4, 2)
    assert found == {
        "lost_s_a_save": 3.0,
        "step_s": 1.0,
        "cost": pytest.approx(3 / 120),  # at the demo's own interval
        "cost_at_measured_interval": 0.75,
        "plain_ratio_of_totals": pytest.approx(17 / 22 - 1),
    }


def test_the_last_time_of_the_slowest_rank_is_read_of_a_log():
    log = """
    load-checkpoint ................................: (20.10, 21.00)
    save-checkpoint ................................: (508.40, 509.23)
    save-checkpoint ................................: (714.68, 1715.25)
"""
    assert timer_s(log, "save-checkpoint") == 1.71525 and timer_s(log, "load-checkpoint") == 0.021


def test_the_disk_is_given_as_many_bytes(tmp_path):
    save_cost.write_bytes(tmp_path / "bytes", save_cost.BLOCK_BYTES + 5)
    assert (tmp_path / "bytes").stat().st_size == save_cost.BLOCK_BYTES + 5
    save_cost.forget(tmp_path)
    assert save_cost.timed(lambda: save_cost.read_bytes(tmp_path / "bytes")) > 0


@pytest.mark.parametrize(("lost_s", "code"), [(5.0, 0), (7.0, 1)])
def test_a_missed_target_is_exit_code_1(capsys, monkeypatch, tmp_path, lost_s, code):
    """A save is charged to 120 steps of one second: 6 s would be 5 %."""

    def train(folder, words):
        assert "training.steps=40" in words
        saves = "checkpoint.every_steps=20" in words
        assert saves is ("checkpoint.async_save=true" in words) is (save_cost.NEVER not in words)
        return seen([lost_s + 1 if saves and step == 21 else 1 for step in range(2, 41)])

    monkeypatch.setattr(save_cost, "train", train)
    monkeypatch.setattr(save_cost, "measure_rates", lambda data: {"checkpoint_bytes": 7, "save_bytes_per_s": 2.6})
    monkeypatch.setattr(save_cost, "DATA", tmp_path)
    (tmp_path / "manifest.json").touch()
    monkeypatch.chdir(tmp_path)
    assert save_cost.main(["--saves", "1", "--rounds", "3"]) == code
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    assert summary["reached"] is (code == 0) and ("MISSED" in printed) is (code == 1)
    assert summary["cost"] == pytest.approx(lost_s / 120, abs=1e-4) and summary["save_bytes_per_s"] == 3
