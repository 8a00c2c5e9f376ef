"""The three averages against their formula, sample by sample, however samples lie in rows, microbatches and ranks."""

import pytest
import torch

from megatron_medx.training.loss import POWERS, StepLosses, averaging_weights

ROWS = [[5, 0, 3], [1], [0], [7, 2]]
"""Trained tokens of the samples of each row of a global batch; some have none, one row has none at all."""

NUM_PROMPT, NUM_PADDING = 2, 3
"""Untrained tokens before each sample's trained ones, and at each row's end."""


def batch(seed: int):
    """(weights_1S, cu_seqlens, losses_1S, losses by sample) of each row, losses float64."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for counts in ROWS:
        lengths = [NUM_PROMPT + count for count in counts] + [NUM_PADDING]
        weights = torch.cat([torch.tensor([0.0] * NUM_PROMPT + [1.0] * count) for count in counts])
        weights = torch.cat([weights, torch.zeros(NUM_PADDING)])
        losses = torch.rand(sum(lengths), generator=random, dtype=torch.float64) * 9
        by_sample = [piece[NUM_PROMPT:] for piece in losses.split(lengths)[:-1]]
        cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        rows.append((weights[None], cu_seqlens, losses[None], by_sample))
    return rows


def by_the_formula(rows, average: str) -> float:
    """loss = sum_s n_s^-p sum_i l_si / sum_s n_s^(1-p), in Python's floats."""
    p = {"token": 0, "sample": 1, "sqrt": 0.5}[average]
    samples = [losses.tolist() for *_, by_sample in rows for losses in by_sample if len(losses)]
    return sum(len(s) ** -p * sum(s) for s in samples) / sum(len(s) ** (1 - p) for s in samples)


@pytest.mark.parametrize("average", POWERS)
def test_sums_over_rows_give_the_formula(average):
    rows = batch(1)
    losses = StepLosses()
    numerator = 0.0
    for weights_1S, cu_seqlens, losses_1S, _ in rows:
        weights = averaging_weights(weights_1S, cu_seqlens, average)
        assert weights.dtype == torch.float32 and weights.shape == weights_1S.shape
        assert torch.equal(weights > 0, weights_1S > 0), "prompts, padding and samples without trained tokens"
        entry = losses.add(["s"])
        entry.loss_sum, entry.denominator = (weights * losses_1S).sum(), weights.sum(dtype=torch.float64)
        numerator += entry.loss_sum.item()
    denominator = losses.denominator(torch.device("cpu"))
    assert denominator.dtype == torch.float64
    assert numerator / denominator.item() == pytest.approx(by_the_formula(rows, average), rel=1e-7)


@pytest.mark.parametrize("average", POWERS)
def test_a_token_of_weight_3_counts_as_three(average):
    """In both sums and in n_s: a sample with it is worth one whose token is there three times."""

    def loss(samples):
        rows = torch.tensor([[weight for sample in samples for weight, _ in sample]])
        lengths = torch.tensor([0, *(len(sample) for sample in samples)], dtype=torch.int32)
        weights = averaging_weights(rows, lengths.cumsum(0, dtype=torch.int32), average)
        losses = torch.tensor([[value for sample in samples for _, value in sample]])
        return ((weights * losses).sum() / weights.sum()).item()

    other, unlearned = [(1.0, 2.0), (1.0, 5.0)], [(0.0, 100.0)]
    weighted = loss([[(3.0, 4.0), (0.5, 7.0)], other, unlearned])
    assert weighted == pytest.approx(loss([[(1.0, 4.0)] * 3 + [(0.5, 7.0)], other]), rel=1e-6)
    assert weighted != pytest.approx(loss([[(1.0, 4.0), (0.5, 7.0)], other]), rel=1e-2)


def test_the_three_averages_differ():
    """What the test above compares is not three times the same number."""
    values = [by_the_formula(batch(1), average) for average in POWERS]
    assert min(abs(a - b) for a, b in zip(values, values[1:] + values[:1], strict=True)) > 1e-2


@pytest.mark.parametrize("average", POWERS)
def test_weights_of_a_row_may_be_cut_afterwards(average):
    """Context-parallel ranks hold pieces of samples: their sums are those of the row."""
    for weights_1S, cu_seqlens, losses_1S, _ in batch(2):
        weights = averaging_weights(weights_1S, cu_seqlens, average)
        order = torch.randperm(weights.shape[1], generator=torch.Generator().manual_seed(3))
        pieces = [(weights[:, part] * losses_1S[:, part]).sum() for part in order.chunk(4)]
        torch.testing.assert_close(sum(pieces), (weights * losses_1S).sum(), rtol=1e-14, atol=0)


def test_per_token_weights_are_the_given_ones():
    weights_1S, cu_seqlens, *_ = batch(1)[0]
    assert averaging_weights(weights_1S, cu_seqlens, "token") is weights_1S


def test_each_sample_weighs_1_in_all_or_the_root_of_its_tokens():
    weights_1S, cu_seqlens, *_ = batch(1)[0]
    lengths = cu_seqlens.diff().tolist()
    sums = {a: [w.sum().item() for w in averaging_weights(weights_1S, cu_seqlens, a)[0].split(lengths)] for a in POWERS}
    assert sums["token"] == [5, 0, 3, 0]
    assert sums["sample"] == pytest.approx([1, 0, 1, 0], abs=1e-6)
    assert sums["sqrt"] == pytest.approx([5**0.5, 0, 3**0.5, 0], abs=1e-6)


def test_a_stage_without_a_loss_has_the_denominator_0():
    """Megatron overwrites it with the last stage's; with virtual stages only the last chunk's entries count."""
    losses = StepLosses()
    losses.add(["a"])
    assert losses.denominator(torch.device("cpu")).item() == 0 and losses.with_loss() == []
    for value in (2.0, 3.5):
        entry = losses.add(["a"])
        entry.loss_sum, entry.denominator = torch.tensor(1.0), torch.tensor(value, dtype=torch.float64)
    first = losses.denominator(torch.device("cpu"))
    first.add_(100)  # the all-reduce works in place
    assert losses.denominator(torch.device("cpu")).item() == 5.5
    losses.start_step()
    assert losses.denominator(torch.device("cpu")).item() == 0
