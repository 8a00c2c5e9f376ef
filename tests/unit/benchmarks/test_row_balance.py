"""The benchmark of dealing rows: its figures by hand, its last line, its exit code."""

import json

import pytest

from benchmarks import row_balance


def run(capsys, *arguments):
    code = row_balance.main([*arguments, "--samples", "8000", "--steps", "2", "--no-table"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_target_is_reached_and_the_rival_stands_beside_it(capsys):
    code, summary = run(capsys)
    assert code == 0 and summary["reached"] is True and summary["rows_per_rank"] == 8
    for ranks in (8, 64):
        found = summary[f"ranks_{ranks}"]
        assert 1 <= found["limit"] <= found["dealt"] <= summary["target"]
        assert found["dealt"] < found["round_robin"]


def test_a_missed_target_is_exit_code_1(capsys):
    """One row a rank: there is nothing to deal."""
    code, summary = run(capsys, "--rows", "1")
    assert code == 1 and summary["reached"] is False
    assert summary["ranks_64"]["dealt"] == summary["ranks_64"]["round_robin"]


def test_a_worse_deal_misses_the_target(capsys, monkeypatch):
    monkeypatch.setattr(
        row_balance, "deal_rows", lambda costs, ranks: [[*range(r, len(costs), ranks)] for r in range(ranks)]
    )
    code, summary = run(capsys)
    assert code == 1 and summary["ranks_64"]["ratio_to_round_robin"] == 1


def test_balance_by_hand():
    """Two steps of 4 rows on 2 ranks, means 8 and 4: dealt 9 + 1 (the costliest beside the cheapest) and 4."""
    found = row_balance.balance([9, 1, 5, 1, 2, 2, 2, 2], 2, 2, max_steps=10)
    assert found == {"dealt": 14 / 12, "round_robin": 18 / 12, "limit": 14 / 12}


def test_a_packed_row_pays_for_its_padding():
    """One short sample in a row: alone it costs its tokens, packed a whole row."""
    alone, packed = (row_balance.row_costs([100], [10**12], packing)[0] for packing in (False, True))
    assert alone == pytest.approx(10**12, rel=1e-7) and packed > 50 * alone  # tables hold costs as float32


@pytest.mark.parametrize("count", [50, 500])
def test_samples_are_skewed_and_repeatable(count):
    lengths, costs = row_balance.skewed_samples(count)
    assert (lengths, costs) == row_balance.skewed_samples(count)
    assert max(lengths) > 5 * sorted(lengths)[len(lengths) // 2] and len(lengths) == len(costs) <= count
