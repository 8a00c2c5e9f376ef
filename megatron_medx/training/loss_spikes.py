"""A loss far above those of the steps before it: when that counts as a spike.

The median follows the run down slowly, so a loss that falls is never a spike. With less than LEAST_KNOWN losses known
nothing is: the first steps, at the lowest rates of a warm-up, only serve to know what is usual. A run that is resumed
knows the steps before it from metrics.jsonl.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Sequence

WINDOW = 100
"""Steps whose losses are remembered: those of the newest that were updated."""

LEAST_KNOWN = 20
"""Losses below which their median says little."""


class LossSpikes:
    """Remembers the losses of sound steps and compares the next one with them.

    Args:
        factor: `survival.spike_factor`; with 0 nothing is a spike.
    """

    def __init__(self, factor: float):
        self.factor = factor
        self._known: deque[float] = deque(maxlen=WINDOW)

    def remember(self, losses: Iterable[float | None]) -> None:
        """Losses of sound steps, oldest first; None, a step without trained tokens, says nothing."""
        self._known.extend(loss for loss in losses if loss is not None)

    def median_below(self, loss: float | None) -> float | None:
        """The median that a loss is a spike above; None where it is none."""
        if loss is None or not is_spike(loss, self._known, self.factor):
            return None
        return statistics.median(self._known)


def is_spike(loss: float, known: Sequence[float], factor: float) -> bool:
    """Whether a loss is above `factor` times the median of the losses before it, of at least LEAST_KNOWN.

    Example: with factor 2 and twenty losses of 3.0, 6.1 is a spike and 6.0 is none.

    Args:
        loss: of a step, finite, in nats.
        known: finite losses of sound steps before it.
        factor: above 1, or 0, with which nothing is a spike.
    """
    return factor > 0 and len(known) >= LEAST_KNOWN and loss > factor * statistics.median(known)


def losses_before(metrics: Iterable[dict], step: int) -> list[float]:
    """Losses that a run which goes on at a step would remember.

    Args:
        metrics: lines of metrics.jsonl; steps that are trained again are among them.
        step: the first one of this launch, from 1.
    """
    sound = [line["loss"] for line in metrics if line["step"] < step and not line.get("skipped")]
    return [loss for loss in sound if loss is not None][-WINDOW:]
