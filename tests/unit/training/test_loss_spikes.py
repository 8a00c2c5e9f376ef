"""What counts as a spike, and which losses a resumed run remembers."""

import pytest

from megatron_medx.training.loss_spikes import LEAST_KNOWN, WINDOW, LossSpikes, is_spike, losses_before


def test_the_example():
    assert is_spike(6.1, [3.0] * 20, 2.0)
    assert not is_spike(6.0, [3.0] * 20, 2.0)


def test_nothing_is_a_spike_before_enough_losses_are_known():
    """Whatever the first steps of a warm-up do."""
    assert not is_spike(1e9, [3.0] * (LEAST_KNOWN - 1), 2.0)
    assert is_spike(1e9, [3.0] * LEAST_KNOWN, 2.0)


def test_factor_0_looks_at_none():
    assert not is_spike(1e9, [3.0] * 50, 0.0)


def test_a_falling_loss_and_a_few_high_ones_before_are_no_spike():
    falling = [12.0 - 0.1 * step for step in range(60)]
    assert not any(is_spike(loss, falling[:step], 1.5) for step, loss in enumerate(falling))
    assert is_spike(6.1, [3.0] * 30 + [50.0] * 9, 2.0), "the median does not follow outliers"


def test_the_newest_losses_count():
    spikes = LossSpikes(2.0)
    spikes.remember([50.0] * 300)
    assert spikes.median_below(90.0) is None
    spikes.remember([3.0] * (WINDOW // 2 + 1))
    assert spikes.median_below(90.0) == 3.0


@pytest.mark.parametrize("loss", [None, 3.0])
def test_a_step_without_trained_tokens_is_no_spike_and_says_nothing(loss):
    spikes = LossSpikes(2.0)
    spikes.remember([3.0] * LEAST_KNOWN)
    spikes.remember([None] * 200)
    assert spikes.median_below(loss) is None
    assert spikes.median_below(7.0) == 3.0


def test_a_resumed_run_knows_the_sound_steps_before_it():
    metrics = [{"step": step, "loss": float(step)} for step in range(1, 8)]
    metrics[2]["skipped"] = True
    metrics[3]["loss"] = None
    assert losses_before(metrics, 7) == [1.0, 2.0, 5.0, 6.0]
    assert losses_before(metrics, 1) == []
    assert losses_before([{"step": step, "loss": 1.0} for step in range(1, 500)], 400) == [1.0] * WINDOW
