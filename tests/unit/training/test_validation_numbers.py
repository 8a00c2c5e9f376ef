"""The numbers of a validation against sums by hand, and how multiple-choice questions are answered."""

import itertools
import math
import zlib

import pytest

from megatron_medx.data.samples import Choice, SampleNotes
from megatron_medx.training.sample_losses import SampleFacts, SampleLoss
from megatron_medx.training.validation_numbers import answer, numbers


def sample(sample_id, loss, trained=1, *, notes=None, tokens=9, num_bytes=1, weight=1.0, weighted=0.0, text_loss=0.0):
    facts = SampleFacts(sample_id, notes or SampleNotes(), tokens, trained, num_bytes, weight)
    return SampleLoss(facts, weighted, loss, text_loss)


SAMPLES = [
    sample("a", 6.0, 3, notes=SampleNotes("CT", "web"), num_bytes=10, weight=2.0, weighted=8.0, text_loss=4.0),
    sample("b", 4.0, 1, notes=SampleNotes("CT", ""), num_bytes=2, weight=1.0, weighted=1.0, text_loss=4.0),
    sample("c", 2.0, 2, notes=SampleNotes("", "web"), num_bytes=0, weight=1.0, weighted=1.0, tokens=100),
]


def test_every_number_is_what_its_formula_says():
    found = numbers(SAMPLES)
    assert found["loss"] == 10 / 4 and found["perplexity"] == math.exp(12 / 6)
    assert found["bits_per_byte"] == pytest.approx(8 / math.log(2) / 12, rel=1e-15)
    assert found["by_modality"] == {"CT": {"loss": 2.5, "tokens": 4}, "unstated": {"loss": 1.0, "tokens": 2}}
    assert found["by_source"] == {"unstated": {"loss": 4.0, "tokens": 1}, "web": {"loss": 8 / 5, "tokens": 5}}
    assert (found["tokens"], found["trained_tokens"]) == (118, 6)
    assert found["samples_crc"] == sum(zlib.crc32(name) for name in (b"a", b"b", b"c"))
    assert found["accuracy"] is None and found["num_questions"] == 0


def test_the_order_of_samples_changes_no_bit():
    samples = [sample(str(number), 0.1 * number, weighted=0.3 * number, text_loss=0.7 * number) for number in range(6)]
    first = numbers(samples)
    assert all(numbers(order) == first for order in itertools.permutations(samples))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_null_where_it_counts(bad):
    found = numbers([*SAMPLES, sample("d", bad, notes=SampleNotes("MR", "web"), weighted=bad, text_loss=bad)])
    assert found["loss"] is found["perplexity"] is found["bits_per_byte"] is None
    assert found["by_modality"]["CT"]["loss"] == 2.5 and found["by_modality"]["MR"] == {"loss": None, "tokens": 1}


def test_without_trained_tokens_there_is_nothing_to_divide_by():
    found = numbers([sample("a", 0.0, 0, num_bytes=0, weight=0.0)])
    assert found["loss"] is found["perplexity"] is found["bits_per_byte"] is found["accuracy"] is None
    assert found["by_source"] == {"unstated": {"loss": None, "tokens": 0}}


def test_a_perplexity_beyond_all_numbers_is_null():
    assert numbers([sample("a", 1e6)])["perplexity"] is None


def options(question, losses, correct=0, num_choices=None):
    return [
        sample(
            f"{question}-{number}",
            loss,
            notes=SampleNotes(choice=Choice(question, num_choices or len(losses), number == correct)),
        )
        for number, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("samples", "right", "questions", "left_out"),
    [
        ([], 0, 0, 0),
        ([sample("no question", 0.0)], 0, 0, 0),
        (options("a", [1.0, 2.0]), 1, 1, 0),
        (options("a", [1.0, 2.0], correct=1), 0, 1, 0),
        (options("a", [3.0, 4.0, 3.5]) + options("b", [2.0, 1.0]), 1, 2, 0),
        (options("a", [1.0, 1.0]), 0, 1, 0),  # a tie is no answer
        (options("a", [math.nan, 1.0]), 0, 1, 0),
        (options("a", [1.0, 2.0], num_choices=3), 0, 0, 1),  # an option is not among the rows
        (options("a", [1.0, 2.0], correct=7), 0, 0, 1),  # none is correct
        (options("a", [1.0]) * 2, 0, 0, 1),  # an id twice, from two folders
        (options("a", [1.0, 2.0], num_choices=3) + options("b", [1.0, 2.0]), 1, 1, 1),
    ],
)
def test_a_question_is_right_where_the_correct_option_is_likeliest(samples, right, questions, left_out):
    found = answer(samples)
    assert (found.num_right, found.num_questions, found.num_left_out) == (right, questions, left_out)
    assert found.accuracy == (right / questions if questions else None)


def test_length_is_not_divided_out():
    """The longer option costs less a token and more in all."""
    short, long = options("a", [3.0, 4.0])
    assert answer([short, sample("x", 4.0, 40, notes=long.facts.notes)]).num_right == 1
