"""The benchmark of dealing images: its figures by hand, its last line, its exit code."""

import json

import pytest

from benchmarks import vision_balance


def run(capsys, *arguments):
    code = vision_balance.main([*arguments, "--microbatches", "4", "--no-time"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_target_is_reached_and_the_rivals_stand_beside_it(capsys):
    code, summary = run(capsys, "--images", "512")
    assert code == 0 and summary["reached"] is True and summary["images_per_microbatch"] == 512
    assert 1 <= summary["limit"] <= summary["dealt"] <= summary["target"] < summary["round_robin"]
    assert summary["whole"] == 8 and summary["seconds"] is None
    assert summary["ratio_to_round_robin"] == pytest.approx(summary["dealt"] / summary["round_robin"], abs=1e-3)


def test_a_missed_target_is_exit_code_1(capsys):
    """Eight images, one of them large: no deal can be even."""
    code, summary = run(capsys, "--images", "8")
    assert code == 1 and summary["reached"] is False and summary["dealt"] > summary["target"]


def test_a_worse_deal_misses_the_target(capsys, monkeypatch):
    monkeypatch.setattr(
        vision_balance, "deal_images", lambda costs, ranks: [[*range(r, len(costs), ranks)] for r in range(ranks)]
    )
    code, summary = run(capsys, "--images", "512")
    assert code == 1 and summary["dealt"] == summary["round_robin"]


def test_balance_by_hand():
    """Two microbatches of 9 images: dealt 9 + 9 of means 2 + 2; round robin puts the ninth on the first."""
    costs = [9, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 8]
    found = vision_balance.estimated_balance(costs, 9, 2)
    assert found == {"dealt": 17 / 4, "round_robin": 18 / 4, "whole": 8, "limit": 17 / 4}


def test_images_are_skewed_and_repeatable():
    grids = vision_balance.skewed_grids(2000)
    assert grids[:50] == vision_balance.skewed_grids(50)
    patches = sorted(height * width for height, width in grids)
    assert patches[0] == 16 and patches[-1] > 10_000  # 64 x 64 px; half of 2048 x 2048 px
    assert sum(patches[-200:]) > 0.5 * sum(patches)  # a tenth of the images has half of the patches
    assert all(height % 2 == width % 2 == 0 for height, width in grids)
