"""The played pipeline against the closed formulas of its two schedules, and against a small one drawn by hand."""

import pytest

from megatron_medx.planner.timeline import orders, simulate


def equal(stages: int, chunks: int, rows: int, forward: float = 1.0, backward: float = 2.0):
    return [[[(forward / chunks, backward / chunks)] * chunks] * stages] * rows


@pytest.mark.parametrize(("stages", "rows"), [(1, 1), (1, 7), (2, 2), (2, 9), (4, 8), (8, 8), (8, 64), (16, 5)])
def test_1f1b_waits_as_the_formula_says(stages, rows):
    timeline = simulate(equal(stages, 1, rows))
    assert timeline.idle_share == pytest.approx((stages - 1) / (rows + stages - 1))
    assert timeline.total_s == pytest.approx(3 * (rows + stages - 1))


@pytest.mark.parametrize(
    ("stages", "chunks", "rows"), [(2, 2, 2), (2, 2, 8), (4, 2, 8), (4, 4, 4), (4, 5, 16), (8, 3, 16)]
)
def test_interleaving_divides_the_waiting_by_the_chunks(stages, chunks, rows):
    timeline = simulate(equal(stages, chunks, rows))
    assert timeline.idle_share == pytest.approx((stages - 1) / (chunks * rows + stages - 1))


def test_two_stages_by_hand():
    """Forward 1 s, backward 2 s, 3 rows: stage 0 runs F0 F1 B0 F2 B1 B2, stage 1 F0 B0 F1 B1 F2 B2."""
    first, last = simulate(equal(2, 1, 3)).stages
    assert [(run.row, run.is_forward, run.start_s, run.end_s) for run in first] == [
        (0, True, 0, 1), (1, True, 1, 2), (0, False, 4, 6), (2, True, 6, 7), (1, False, 7, 9), (2, False, 10, 12)
    ]  # fmt: skip
    assert [(run.row, run.is_forward, run.start_s, run.end_s) for run in last] == [
        (0, True, 1, 2), (0, False, 2, 4), (1, True, 4, 5), (1, False, 5, 7), (2, True, 7, 8), (2, False, 8, 10)
    ]  # fmt: skip


def test_rows_and_stages_of_different_cost_wait_for_one_another():
    """Stage 1 takes 5 s for the first row's forward pass and 1 s for all else; F0(0) F1(0) end at 1 and 2."""
    rows = [[[(1, 1)], [(5, 1)]], [[(1, 1)], [(1, 1)]]]
    timeline = simulate(rows)
    # stage 1: F0 1-6, B0 6-7, F1 7-8, B1 8-9; stage 0: B0 7-8, B1 9-10
    assert timeline.total_s == 10
    assert timeline.busy_s == [4, 8]
    assert timeline.idle_share == pytest.approx(1 - 12 / 20)


def test_messages_lie_on_the_path_between_stages_and_nowhere_else():
    assert simulate(equal(1, 1, 4), hop_s=0.5).total_s == 12
    assert simulate(equal(2, 1, 1), hop_s=0.5).total_s == 6 + 2 * 0.5


def test_orders_are_megatrons():
    """Interleaved: warm-up 2 (P - s - 1) + (v - 1) P passes; groups of P rows through chunk 0, then chunk 1."""
    order = orders(2, 2, 4, stage=0)
    assert order[:4] == [(0, 0, True), (1, 0, True), (0, 1, True), (1, 1, True)]
    assert order[4:6] == [(2, 0, True), (0, 1, False)]
    assert orders(2, 2, 4, stage=1)[:4] == [(0, 0, True), (1, 0, True), (0, 1, True), (0, 1, False)]
    assert [(row, forward) for row, _, forward in orders(2, 1, 3, stage=0)] == [
        (0, True), (1, True), (0, False), (2, True), (1, False), (2, False)
    ]  # fmt: skip


@pytest.mark.parametrize(("stages", "chunks", "rows"), [(4, 1, 3), (4, 3, 8), (3, 2, 6)])
def test_every_pass_is_run_once_and_after_what_it_needs(stages, chunks, rows):
    ends = {}
    for stage, runs in enumerate(simulate(equal(stages, chunks, rows), hop_s=0.25).stages):
        assert len(runs) == 2 * chunks * rows
        for run in runs:
            ends[stage, run.row, run.chunk, run.is_forward] = run
    assert len(ends) == 2 * stages * chunks * rows
    for (stage, row, chunk, is_forward), run in ends.items():
        if is_forward and (stage or chunk):
            before = ends[(stage - 1) % stages, row, chunk - (stage == 0), True]
            assert run.start_s >= before.end_s + 0.25
        if not is_forward:
            assert run.start_s >= ends[stage, row, chunk, True].end_s
