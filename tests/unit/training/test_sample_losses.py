"""Token losses of rows, summed by sample on one rank and over context- and data-parallel ranks."""

from types import SimpleNamespace

import pytest
import torch

from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.samples import SampleNotes
from megatron_medx.parallel.context import tokens_of_rank
from megatron_medx.training import sample_losses
from megatron_medx.training.sample_losses import SampleMeter, gather_samples

NUM_BYTES = torch.tensor([1, 2, 3, 0])
"""Of a vocabulary of four tokens: 3 is special."""


@pytest.fixture
def row():
    """Samples of 8 and 4 tokens, a tail of 4; trained are labels 1 2 3 of the first, 0 of the second with weight 2."""
    labels = [0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    weights = [0, 0, 0, 0, 1, 1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0]
    return Microbatch(
        tokens_1S=torch.zeros(1, 16, dtype=torch.int64),
        labels_1S=torch.tensor([labels]),
        loss_weights_1S=torch.tensor([weights]).float(),
        positions_3S=torch.zeros(3, 16, dtype=torch.int64),
        cu_seqlens=torch.tensor([0, 8, 12, 16], dtype=torch.int32),
        pixels_PC=torch.empty(0, 12),
        grids_I3=torch.empty(0, 3, dtype=torch.int64),
        vision_index_M=torch.empty(0, dtype=torch.int64),
        sample_ids=["a", "b"],
        sample_tokens=[7, 3],
        sample_folders=[0, 0],
        sample_notes=[SampleNotes("CT", "web"), SampleNotes()],
    )


LOSSES = torch.arange(16.0)[None]
"""The token at place i has loss i."""


def context_group(monkeypatch, size=1, rank=0):
    group = SimpleNamespace(size=lambda: size, rank=lambda: rank)
    monkeypatch.setattr(sample_losses, "mpu", SimpleNamespace(get_context_parallel_group=lambda: group))


def test_losses_and_what_is_known_are_those_of_each_sample(row, monkeypatch):
    context_group(monkeypatch)
    first, second = (found := SampleMeter(NUM_BYTES).of_row(row, row.loss_weights_1S)(LOSSES)).facts
    assert (first.sample_id, first.num_tokens, first.trained_tokens, first.num_bytes, first.weight) == ("a", 7, 3, 5, 3)
    assert (second.sample_id, second.num_tokens, second.trained_tokens) == ("b", 3, 1)
    assert (second.num_bytes, second.weight) == (1, 2.0)
    assert first.notes == SampleNotes("CT", "web") and second.notes == SampleNotes()
    # weighted 4 + 5 + 6 and 2 x 9; each once; without the special token, whose loss is 6
    assert found.sums_3N.tolist() == [[15.0, 18.0], [15.0, 9.0], [9.0, 9.0]] and found.sums_3N.dtype == torch.float64


def test_what_is_not_trained_may_be_infinite_and_what_is_shows(row, monkeypatch):
    context_group(monkeypatch)
    losses = LOSSES.clone()
    losses[0, [0, 15]] = torch.inf
    assert SampleMeter(NUM_BYTES).of_row(row, row.loss_weights_1S)(losses).sums_3N.isfinite().all()
    losses[0, 9] = torch.nan
    sums = SampleMeter(NUM_BYTES).of_row(row, row.loss_weights_1S)(losses).sums_3N
    assert sums[:, 0].isfinite().all() and sums[:, 1].isnan().all()


def test_context_parallel_ranks_hold_parts_of_the_same_sums(row, monkeypatch):
    context_group(monkeypatch)
    whole = SampleMeter(NUM_BYTES).of_row(row, row.loss_weights_1S)(LOSSES)
    parts = []
    for rank in (0, 1):
        context_group(monkeypatch, 2, rank)
        own = LOSSES[:, tokens_of_rank(row.cu_seqlens, 2, rank)]
        parts.append(SampleMeter(NUM_BYTES).of_row(row, row.loss_weights_1S)(own))
    assert parts[0].facts == parts[1].facts == whole.facts
    assert not torch.equal(parts[0].sums_3N, whole.sums_3N)
    assert torch.equal(parts[0].sums_3N + parts[1].sums_3N, whole.sums_3N)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_last_data_parallel_rank_has_all_samples(row, monkeypatch, rank):
    """Rank 1 of two; the other context-parallel rank adds 100 to each sum."""
    context_group(monkeypatch)
    rows = [SampleMeter(NUM_BYTES).of_row(row, row.loss_weights_1S)(LOSSES) for _ in range(2)]
    data = SimpleNamespace(size=lambda: 2)
    sample_losses.mpu.get_data_parallel_group = lambda: data

    def gather(own, gathered, dst, group):
        assert (dst, group) == (1, data)
        if gathered is not None:
            gathered[:] = [["theirs"], own]

    monkeypatch.setattr(
        sample_losses,
        "dist",
        SimpleNamespace(
            all_reduce=lambda sums, group: sums.add_(100.0),
            get_process_group_ranks=lambda group: [0, 1],
            get_rank=lambda: rank,
            gather_object=gather,
        ),
    )
    samples = gather_samples(rows)
    if rank == 0:
        assert samples == []
        return
    assert samples[0] == "theirs" and [one.facts.sample_id for one in samples[1:]] == ["a", "b", "a", "b"]
    assert (samples[2].weighted_loss, samples[2].loss, samples[2].text_loss) == (118.0, 109.0, 109.0)
