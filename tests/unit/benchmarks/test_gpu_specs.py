"""The comparison of layers for the GPU, without one: its row, its distances by hand, a fault that it must see."""

import dataclasses

import pytest
import torch

from benchmarks.gpu import specs
from benchmarks.gpu.specs import Outcome


def test_the_row_is_packed_uneven_and_has_several_images():
    model = specs.small_model()
    row = specs.make_row(model)
    assert len(row.sample_ids) == 5 and len(set(row.sample_tokens)) == 5
    assert row.tokens_1S.shape[1] % specs.ALIGN_TOKENS == 0 and len(row.cu_seqlens) == 7  # the tail is a segment
    assert len(row.grids_I3) == 6 and len(row.pixels_PC) == int(row.grids_I3.prod(dim=1).sum())
    assert len(row.vision_index_M) * 4 == len(row.pixels_PC)
    assert int(row.positions_3S[1:].max()) > 0 and model.vision.deepstack_layers and model.tie_embeddings


@pytest.fixture
def outcome():
    names = [f"{prefix}{letter}" for prefix in specs.GROUPS.values() for letter in "ab"]
    gradients = {name: torch.full((2,), 1.0) for name in names}
    return Outcome(torch.full((4,), 2.0), torch.full((1, 4), 3.0), gradients)


def test_distances_by_hand(outcome):
    assert set(specs.distances(outcome, outcome).values()) == {0.0}
    wrong = outcome.gradients | {"merger.final.b": torch.tensor([1.0, 1.2])}
    found = specs.distances(dataclasses.replace(outcome, gradients=wrong), outcome)
    assert found["merger"] == pytest.approx(0.2 / 2) and found["tower"] == 0.0


def test_a_part_without_gradients_is_a_fault(outcome):
    lacking = {name: gradient for name, gradient in outcome.gradients.items() if not name.startswith("vision.")}
    with pytest.raises(AssertionError, match=r"no gradient named vision\."):
        specs.distances(outcome, dataclasses.replace(outcome, gradients=lacking))


def test_another_network_is_not_within_bf16(monkeypatch, outcome):
    """Logits a tenth off, where plain bf16 is a hundredth off."""
    errors = iter([0.0, 0.01, 0.1])

    def compute(groups, dtype, use_transformer_engine, seed):
        return dataclasses.replace(outcome, logits_S1V=outcome.logits_S1V * (1 + next(errors)))

    monkeypatch.setattr(specs, "compute", compute)
    found = specs.compare(None, True)
    assert not found["logits"]["within"] and found["logits"]["te"] == pytest.approx(0.1)
    assert found["logits"]["limit"] == pytest.approx(0.02 + 2**-8) and found["tower"]["within"]
