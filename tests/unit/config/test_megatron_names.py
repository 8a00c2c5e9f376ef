"""The two vocabularies agree: what training sets is either refused in `megatron.` or may be changed there."""

from pathlib import Path

import pytest

from megatron_medx.config.megatron_names import OURS, OVERRIDABLE
from megatron_medx.recipes import get_recipe
from megatron_medx.training.megatron_args import settings


@pytest.mark.parametrize("accelerated", [False, True])
def test_every_argument_that_training_sets_is_listed(accelerated):
    arguments = settings(
        get_recipe("demo_moe"), folder=Path("x"), resume=True, use_cuda=accelerated, use_transformer_engine=accelerated
    )
    assert set(arguments) <= set(OURS) | set(OVERRIDABLE)


def test_no_argument_is_both_refused_and_free():
    assert not set(OURS) & set(OVERRIDABLE)
