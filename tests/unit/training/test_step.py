"""The sums that a step reports, and the rows that a rank takes."""

import itertools
from types import SimpleNamespace

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
        ),
        SimpleNamespace(
            tokens_1S=torch.zeros(1, 5, dtype=torch.int64),
            grids_I3=torch.zeros(0, 3, dtype=torch.int64),
            sample_tokens=[5],
        ),
    ]
    counts = [step.microbatch_counts(row, config, ()) for row in rows]
    reported = {key: sum(c[key][0] for c in counts) / sum(c[key][1] for c in counts) for key in counts[0]}
    assert reported["tokens"] == 17 and reported["images"] == 1
    assert reported["model_flops"] == step_flops(config.model, [7, 5, 5], [24])["total"]


def test_ranks_share_the_rows_of_a_step_and_a_resume_goes_on(step):
    """With 1, 2 or 4 ranks the same rows are in each step of 4, also from the middle of a run."""
    from megatron_medx.training.providers import rows_of_rank

    for first in (0, 8):
        for size in (1, 2, 4):
            iterators = [rows_of_rank(lambda row: row, first, rank, size) for rank in range(size)]
            per_rank = [list(itertools.islice(rows, 8 // size)) for rows in iterators]
            assert sorted(itertools.chain(*per_rank)) == list(range(first, first + 8))
            first_step = sorted(row for rows in per_rank for row in rows[: 4 // size])
            assert first_step == list(range(first, first + 4))
