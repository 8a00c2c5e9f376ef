"""When a row without images may leave the tower out."""

from types import SimpleNamespace

import pytest

from megatron_medx.config.run import TrainingSection
from megatron_medx.training import providers


@pytest.mark.parametrize(
    ("overlap", "freeze", "rests"),
    [
        (False, (), True),
        (False, ("vision", "merger"), True),
        (True, (), False),
        (False, ("vision", "language"), False),
    ],
)
def test_the_tower_rests_where_nothing_waits_for_its_gradients(overlap, freeze, rests, monkeypatch):
    monkeypatch.setattr(providers, "get_args", lambda: SimpleNamespace(overlap_grad_reduce=overlap))
    assert providers.tower_may_rest(SimpleNamespace(training=TrainingSection(freeze=freeze))) is rests
