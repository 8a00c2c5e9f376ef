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
    loss, num_trained, report = step.sum_of_losses(weights, entry, torch.tensor([[9.0, 1.0, 2.5, 9.0]]))
    assert loss.item() == 2.25 and num_trained.item() == 2 and num_trained.dtype == torch.int32
    assert list(report) == ["loss"] and report["loss"].tolist() == [2.25, 1.5]
    assert entry.loss_sum.item() == 2.25 and entry.denominator.item() == 1.5
    assert entry.denominator.dtype == torch.float64


def test_counts_add_up_over_ranks_and_rows(step, monkeypatch):
    """Two rows here and one on another rank; padding is counted nowhere, what context ranks share once."""
    config, sources = get_recipe("demo"), ("reports", "replay")
    rows = [
        SimpleNamespace(
            grids_I3=torch.tensor([[1, 4, 6]]), sample_tokens=[7, 5], sample_ids=["a", "b"], sample_folders=[0, 1]
        ),
        SimpleNamespace(
            grids_I3=torch.zeros(0, 3, dtype=torch.int64), sample_tokens=[5], sample_ids=["c"], sample_folders=[1]
        ),
    ]
    losses = StepLosses()
    for row in rows:
        entry = losses.add(row.sample_ids)
        entry.loss_sum, entry.counts = torch.tensor(1.0), step.microbatch_counts(row, config, len(sources))
    losses.add(["of a chunk without loss"])

    def add_other_rank(tensor, group):
        assert group == "data, context True"
        tensor += torch.tensor([10.0, 2.0, 100.0, 1e9, 4.0, 6.0], dtype=torch.float64)
        tensor *= 2  # as if two context ranks had counted each row

    monkeypatch.setattr(step.dist, "all_reduce", add_other_rank)
    groups = SimpleNamespace(
        get_data_parallel_group=lambda with_context_parallel: f"data, context {with_context_parallel}",
        get_context_parallel_world_size=lambda: 2,
    )
    monkeypatch.setattr(step, "mpu", groups)
    assert step.step_counts(losses, sources) == {
        "tokens": 27,
        "images": 3,
        "samples_crc": 100 + sum(zlib.crc32(name) for name in (b"a", b"b", b"c")),
        "model_flops": 1e9 + step_flops(config.model, [7, 5, 5], [24])["total"],
        "source_tokens": {"reports": 11, "replay": 16},
    }


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
