"""The order of rows: a pure function of the row index."""

import numpy as np
import pytest

from megatron_medx.data.plan import RowPlan, seeded_order


@pytest.fixture
def lengths():
    return np.random.default_rng(3).integers(20, 900, 500).tolist()


@pytest.mark.parametrize("packing", [False, True])
def test_same_rows_in_any_order_of_asking(lengths, packing):
    plan = RowPlan(lengths, 1024, packing, seed=7)
    count = plan.rows_per_epoch * 3
    forwards = [plan.row(j) for j in range(count)]
    fresh = RowPlan(lengths, 1024, packing, seed=7)
    shuffled = np.random.default_rng(0).permutation(count).tolist()
    assert {j: fresh.row(j) for j in shuffled} == dict(enumerate(forwards))
    assert RowPlan(lengths, 1024, packing, seed=8).row(0) != forwards[0]


@pytest.mark.parametrize("packing", [False, True])
def test_every_sample_once_an_epoch_and_rows_within_capacity(lengths, packing):
    plan = RowPlan(lengths, 1024, packing, seed=7)
    per_epoch = plan.rows_per_epoch
    for epoch in range(3):
        rows = [plan.row(j) for j in range(epoch * per_epoch, (epoch + 1) * per_epoch)]
        assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
        assert max(sum(lengths[index] for index in row) for row in rows) <= 1024
    assert plan.row(0) != plan.row(per_epoch)


def test_packing_wastes_little(lengths):
    """Measured: 3.8 % of the capacity stays empty with packing, 55.6 % without."""
    assert RowPlan(lengths, 1024, True, seed=7).waste < 0.05
    assert RowPlan(lengths, 1024, False, seed=7).waste > 0.5


def test_a_row_can_be_changed_without_changing_the_plan(lengths):
    plan = RowPlan(lengths, 1024, True, seed=7)
    plan.row(0).clear()
    assert plan.row(0)


def test_rows_far_away_cost_nothing():
    plan = RowPlan([5, 5, 5], 10, True, seed=0)
    assert plan.row(10**12)


def test_the_order_never_changes():
    """Written down once: a numpy or a change of ours that reorders data would break every resumed run."""
    assert seeded_order(8, seed=1234, stream=1).tolist() == [3, 6, 7, 0, 5, 4, 1, 2]
