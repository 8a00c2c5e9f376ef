"""Dealing the rows of a step to ranks: complete, equally many, repeatable, even."""

from itertools import combinations

import numpy as np
import pytest

from megatron_medx.parallel.row_dealing import deal_rows


def loads(costs, shares):
    return [sum(costs[row] for row in share) for share in shares]


def test_worked_example_of_the_docstring():
    assert deal_rows([9, 1, 5, 4, 2, 2], 2) == [[0, 1, 4], [2, 3, 5]]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_once_and_equally_many_a_rank(seed):
    rng = np.random.default_rng(seed)
    for num_ranks in (1, 2, 3, 8, 64):
        rows_per_rank = int(rng.integers(1, 9))
        costs = rng.lognormal(0, 2, num_ranks * rows_per_rank).tolist()
        shares = deal_rows(costs, num_ranks)
        assert sorted(row for share in shares for row in share) == list(range(len(costs)))
        assert [len(share) for share in shares] == [rows_per_rank] * num_ranks
        assert all(share == sorted(share) for share in shares)
        assert shares == deal_rows(list(costs), num_ranks)


def test_equal_costs_are_round_robin():
    assert deal_rows([1] * 6, 3) == [[0, 3], [1, 4], [2, 5]]
    assert deal_rows([0] * 4, 2) == [[0, 1], [2, 3]]


def test_one_rank_has_all_rows_in_order():
    assert deal_rows([1, 9, 4], 1) == [[0, 1, 2]]


def test_the_number_of_rows_is_a_limit():
    """Without it the costly row would stand alone."""
    assert deal_rows([100, 1, 1, 1], 2) == [[0, 3], [1, 2]]


def test_rows_that_ranks_cannot_share_equally_are_a_bug_of_the_caller():
    with pytest.raises(AssertionError, match="5 rows on 2 ranks"):
        deal_rows([1] * 5, 2)


def test_close_to_the_best_of_all_deals():
    """Two ranks, eight rows: measured at worst 1.074 times the best of 70 deals, 1.011 on average."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(200):
        costs = rng.lognormal(0, 1, 8).tolist()
        best = min(max(sum(chosen), sum(costs) - sum(chosen)) for chosen in combinations(costs, 4))
        ratios.append(max(loads(costs, deal_rows(costs, 2))) / best)
    assert max(ratios) < 1.1 and np.mean(ratios) < 1.02, (max(ratios), np.mean(ratios))


@pytest.mark.parametrize(("num_ranks", "dealt", "in_turn"), [(8, 1.02, 1.2), (64, 1.05, 1.4)])
def test_sixteen_skewed_rows_a_rank_are_even(num_ranks, dealt, in_turn):
    """Slowest over mean. Measured: 1.013 and 1.039; round robin has 1.25 and 1.48."""
    costs = np.random.default_rng(1).lognormal(0, 0.7, 16 * num_ranks).tolist()
    mean = sum(costs) / num_ranks
    assert max(loads(costs, deal_rows(costs, num_ranks))) / mean < dealt
    assert max(sum(costs[rank::num_ranks]) for rank in range(num_ranks)) / mean > in_turn
