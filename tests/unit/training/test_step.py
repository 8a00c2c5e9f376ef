"""The sums that a step reports, and the rows that a rank takes."""

import itertools
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_medx.config.flops import step_flops
from megatron_medx.recipes import get_recipe
from megatron_medx.training.loss import StepLosses


@pytest.fixture(scope="module")
def step():
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    from megatron_medx.training import step

    return step


def test_the_loss_is_a_sum_over_trained_tokens(step):
    weights, entry = torch.tensor([[0.0, 1.0, 0.5, 0.0]]), StepLosses().add(["a"])
    loss, num_trained, report = step.sum_of_losses(weights, {}, entry, torch.tensor([[9.0, 1.0, 2.5, 9.0]]))
    assert loss.item() == 2.25 and num_trained.item() == 2 and num_trained.dtype == torch.int32
    assert report["loss"].tolist() == [2.25, 1.5]
    assert entry.loss_sum.item() == 2.25 and entry.denominator.item() == 1.5
    assert entry.denominator.dtype == torch.float64


def test_counts_add_up_over_a_global_batch_as_megatron_divides_them(step):
    """Megatron reports sum(first) / sum(second); two rows a step here, padding counted in neither."""
    config = get_recipe("demo")
    rows = [
        SimpleNamespace(
            tokens_1S=torch.zeros(1, 16, dtype=torch.int64),
            grids_I3=torch.tensor([[1, 4, 6]]),
            sample_tokens=[7, 5],
            sample_ids=["a", "b"],
        ),
        SimpleNamespace(
            tokens_1S=torch.zeros(1, 5, dtype=torch.int64),
            grids_I3=torch.zeros(0, 3, dtype=torch.int64),
            sample_tokens=[5],
            sample_ids=["c"],
        ),
    ]
    counts = [step.microbatch_counts(row, config, ()) for row in rows]
    reported = {key: sum(c[key][0] for c in counts) / sum(c[key][1] for c in counts) for key in counts[0]}
    assert reported["samples_crc"] == sum(zlib.crc32(name) for name in (b"a", b"b", b"c"))
    assert reported["tokens"] == 17 and reported["images"] == 1
    assert reported["model_flops"] == step_flops(config.model, [7, 5, 5], [24])["total"]


@pytest.mark.parametrize("seed", range(5))
def test_ranks_share_the_rows_of_a_step_and_a_resume_goes_on(step, seed):
    """With 1, 2 or 4 ranks the same rows are in each step of 8, equally many a rank, also from the middle of a run."""
    from megatron_medx.training.providers import rows_of_rank

    costs = np.random.default_rng(seed).lognormal(0, 1, 40)
    uneven = {}
    for size in (1, 2, 4):
        steps = {}
        for first in (0, 16):
            iterators = [rows_of_rank(costs.__getitem__, first, 8, rank, size) for rank in range(size)]
            for start in range(first, 40 if first == 0 else 32, 8):
                shares = [list(itertools.islice(rows, 8 // size)) for rows in iterators]
                assert sorted(itertools.chain(*shares)) == list(range(start, start + 8))
                assert steps.setdefault(start, shares) == shares, "a resume deals otherwise"
        loads = [[costs[share].sum() for share in shares] for shares in steps.values()]
        uneven[size] = sum(map(max, loads)) * size / costs.sum()
    in_turn = sum(max(costs[start + rank : start + 8 : 4].sum() for rank in range(4)) for start in range(0, 40, 8))
    assert uneven[1] == pytest.approx(1) and uneven[4] < in_turn * 4 / costs.sum()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_skipped_rows_are_in_no_step_and_rows_are_dealt_by_their_own_costs(step, size):
    """As a run whose plan never had rows 8 to 13 deals the others."""
    from megatron_medx.training.providers import rows_of_rank

    costs = np.random.default_rng(3).lognormal(0, 1, 40)
    kept = [*range(8), *range(14, 40)]
    for rank in range(size):
        skipping = rows_of_rank(costs.__getitem__, 0, 8, rank, size, [(8, 13)])
        without = rows_of_rank(lambda position: costs[kept[position]], 0, 8, rank, size)
        of_32 = 32 // size
        found, wanted = list(itertools.islice(skipping, of_32)), list(itertools.islice(without, of_32))
        assert found == [kept[position] for position in wanted]
