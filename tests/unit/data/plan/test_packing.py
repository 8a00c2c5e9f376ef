"""Samples joined into rows under two limits."""

import time

import numpy as np
import pytest

from megatron_medx.data.plan import packing
from megatron_medx.data.plan.packing import join


def test_by_hand():
    assert join(np.array([6, 5, 4, 3, 2]), np.zeros(5), 10).tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_as_it_is_told(seed):
    """Against a search of all rows for each sample: the fullest that has room, of equally full ones the first."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, rng.integers(1, 200))
    used, expected = [], []
    for length in lengths.tolist():
        fitting = [row for row in range(len(used)) if used[row] + length <= 64]
        row = max(fitting, key=lambda row: used[row]) if fitting else len(used)
        used[row : row + 1] = [(used[row] if fitting else 0) + length]
        expected.append(row)
    assert join(lengths, np.zeros_like(lengths), 64).tolist() == expected


@pytest.mark.parametrize("patience", [2, 32])
@pytest.mark.parametrize("seed", range(20))
def test_best_fit_under_two_limits(seed, patience, monkeypatch):
    """The same told in plain lists: of each room left in the scarcer measure the first row is looked at."""
    monkeypatch.setattr(packing, "PATIENCE", patience)
    rng = np.random.default_rng(seed)
    tokens, patches = rng.integers(1, 60, 150), rng.integers(0, 30, 150)
    sizes, room = [tokens, patches], [64, 40]
    if tokens.sum() / 64 < patches.sum() / 40:
        sizes, room = sizes[::-1], room[::-1]
    left, failed, closed, expected = [], [], set(), []
    for sample in zip(*sizes, strict=True):
        chosen = len(left)
        for free in sorted({free for row, (free, _) in enumerate(left) if row not in closed and free >= sample[0]}):
            first = next(row for row in range(len(left)) if row not in closed and left[row][0] == free)
            if left[first][1] >= sample[1]:
                chosen = first
                break
            failed[first] += 1
            if failed[first] == patience:
                closed.add(first)
        if chosen == len(left):
            left.append(list(room))
            failed.append(0)
        left[chosen] = [free - size for free, size in zip(left[chosen], sample, strict=True)]
        if any(free < of_all.min() for free, of_all in zip(left[chosen], sizes, strict=True)):
            closed.add(chosen)
        expected.append(chosen)
    assert join(tokens, patches, 64, 40).tolist() == expected


@pytest.mark.parametrize("most_patches", [20_000, 12_000, 9_000, 6_000])
def test_rows_within_both_limits_and_nearly_as_few_as_can_be(most_patches):
    """From ample patches to scarce ones; the worst, 2 %, is where both run out at once."""
    rng = np.random.default_rng(2)
    tokens = np.clip(300 * np.exp(rng.normal(0, 1, 20_000)), 8, 6000).astype(np.int32)
    patches = np.where(rng.random(tokens.size) < 0.6, tokens * rng.uniform(0.3, 0.95, tokens.size) * 4, 0)
    patches = np.minimum(patches, most_patches).astype(np.int32) // 4 * 4
    rows = join(tokens, patches, 8192, most_patches)
    of_rows = np.bincount(rows, tokens), np.bincount(rows, patches)
    assert of_rows[0].max() <= 8192 and of_rows[1].max() <= most_patches
    fewest = max(tokens.sum() / 8192, patches.sum() / most_patches)
    assert rows.max() + 1 <= 1.03 * fewest


def test_a_sample_costs_the_same_in_any_corpus():
    """Also where half the samples have room in tokens but never in patches."""
    rng = np.random.default_rng(0)

    def seconds_a_sample(count: int) -> float:
        tokens, patches = rng.integers(1, 40, count), np.where(np.arange(count) % 2, 4096, 0)
        start_s = time.process_time()
        join(tokens, patches, 8192, 8192)
        return (time.process_time() - start_s) / count

    seconds_a_sample(1000)
    assert seconds_a_sample(100_000) < 5 * seconds_a_sample(10_000)


def test_a_sample_that_no_row_holds_is_a_defect():
    with pytest.raises(AssertionError, match="longer than a row"):
        join(np.array([11]), np.array([0]), 10)
    with pytest.raises(AssertionError, match="more patches than a row"):
        join(np.array([5]), np.array([9]), 10, 8)
