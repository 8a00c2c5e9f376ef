"""Fields that say how a run survives: what contradicts one another is refused, with a way out that passes."""

import pytest

from megatron_medx.config.checks import check
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.errors import ConfigError
from megatron_medx.recipes import get_recipe


@pytest.mark.parametrize(
    ("words", "found", "mended"),
    [
        (["checkpoint.keep_last=1"], "keep_last is 1", ["checkpoint.keep_last=2"]),
        (["checkpoint.keep_every_steps=120"], "which keeps all", ["checkpoint.keep_last=2"]),
        (
            ["checkpoint.keep_last=2", "checkpoint.every_steps=40", "checkpoint.keep_every_steps=100"],
            "set checkpoint.keep_every_steps=120",
            ["checkpoint.keep_every_steps=120"],
        ),
        (
            [
                "training.on_bad_loss=rollback",
                "survival.bad_steps=6",
                "checkpoint.every_steps=2",
                "checkpoint.keep_last=2",
            ],
            "set checkpoint.keep_last=4",
            ["checkpoint.keep_last=4"],
        ),
        (["survival.spike_factor=2"], "on_bad_loss=stop", ["training.on_bad_loss=rollback"]),
        (["training.on_bad_loss=rollback", "survival.spike_factor=0.9"], "more than 1", ["survival.spike_factor=2"]),
    ],
)
def test_contradictions_are_refused_with_a_way_out(words, found, mended):
    with pytest.raises(ConfigError) as raised:
        check(apply_overrides(get_recipe("demo"), words))
    assert found in str(raised.value)
    check(apply_overrides(get_recipe("demo"), words + mended))
