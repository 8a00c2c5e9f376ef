"""What a validation finds: the numbers of a line of `validation.jsonl`, out of the losses of its samples.

docs/validation.md has each with its formula. Sums are exactly rounded whatever the order of samples (`math.fsum`), so
equal losses give equal numbers on every grid.
"""

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from megatron_medx.training.sample_losses import SampleLoss

UNSTATED = "unstated"
"""What samples that name no modality or source are shown under."""


@dataclass(frozen=True, slots=True)
class Answers:
    """How many multiple-choice questions were answered right."""

    num_right: int
    num_questions: int
    num_left_out: int
    """Questions whose options are not all there, or of which not exactly one is correct."""

    @property
    def accuracy(self) -> float | None:
        """Share from 0 to 1; None without questions."""
        return self.num_right / self.num_questions if self.num_questions else None


def numbers(samples: Sequence[SampleLoss]) -> dict[str, object]:
    """What `run_folder/quantities.py` VALIDATION names; of a number that is not finite, None."""
    facts, answers = [sample.facts for sample in samples], answer(samples)
    trained_tokens = sum(one.trained_tokens for one in facts)
    mean = _ratio(math.fsum(sample.loss for sample in samples), trained_tokens)
    bits = math.fsum(sample.text_loss for sample in samples) / math.log(2)
    return {
        "loss": _ratio(
            math.fsum(sample.weighted_loss for sample in samples), math.fsum(sample.facts.weight for sample in samples)
        ),
        "perplexity": None if mean is None or mean > math.log(1e300) else math.exp(mean),
        "bits_per_byte": _ratio(bits, sum(one.num_bytes for one in facts)),
        "accuracy": answers.accuracy,
        "num_questions": answers.num_questions,
        "tokens": sum(one.num_tokens for one in facts),
        "trained_tokens": trained_tokens,
        "samples_crc": sum(zlib.crc32(one.sample_id.encode()) for one in facts),
        "by_modality": _means_by(samples, lambda sample: sample.facts.notes.modality),
        "by_source": _means_by(samples, lambda sample: sample.facts.notes.source),
    }


def answer(samples: Iterable[SampleLoss]) -> Answers:
    """Answer multiple-choice questions: of each the option with the highest log-likelihood of its answer's tokens.

    The log-likelihood is the negative sum of token losses, not divided by length. An option that ties with the correct
    one makes the answer wrong.
    """
    questions: dict[str, list[SampleLoss]] = defaultdict(list)
    for sample in samples:
        if sample.facts.notes.choice is not None:
            questions[sample.facts.notes.choice.question].append(sample)
    whole = [options for options in questions.values() if _is_whole(options)]
    return Answers(sum(map(_is_right, whole)), len(whole), len(questions) - len(whole))


def _is_whole(options: Sequence[SampleLoss]) -> bool:
    choices = [option.facts.notes.choice for option in options]
    return {one.num_choices for one in choices} == {len(options)} and sum(one.correct for one in choices) == 1


def _is_right(options: Sequence[SampleLoss]) -> bool:
    (correct,) = (option.loss for option in options if option.facts.notes.choice.correct)
    return all(correct < option.loss for option in options if not option.facts.notes.choice.correct)


def _means_by(samples: Iterable[SampleLoss], name_of: Callable[[SampleLoss], str]) -> dict[str, dict]:
    """Name -> mean loss of trained tokens, each once, and their number."""
    groups: dict[str, list[SampleLoss]] = defaultdict(list)
    for sample in samples:
        groups[name_of(sample) or UNSTATED].append(sample)
    found = {}
    for name, members in sorted(groups.items()):
        tokens = sum(member.facts.trained_tokens for member in members)
        found[name] = {"loss": _ratio(math.fsum(member.loss for member in members), tokens), "tokens": tokens}
    return found


def _ratio(numerator: float, denominator: float) -> float | None:
    """None where it is not finite, or there is nothing to divide by."""
    return numerator / denominator if denominator and math.isfinite(numerator) else None
