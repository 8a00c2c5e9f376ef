"""What the demo is validated on: pictures, codes and terms that no training sample has, as `samples.jsonl` records."""

from collections.abc import Iterator

from megatron_medx.data.choices import choice_records
from megatron_medx.data.demo.corpus import (
    HPO_NOTES,
    MODALITY_QUESTION,
    NUM_DOCUMENTS,
    NUM_QUESTIONS,
    HpoTerm,
    chat,
    choose_terms,
    hpo_question,
    image_part,
    notes,
    text_part,
    text_samples,
)
from megatron_medx.data.demo.pictures import HELD_OUT_PICTURES, MODALITY_NAMES

FIRST = NUM_QUESTIONS + NUM_DOCUMENTS
"""Entry of each vocabulary behind those that are trained on."""

NUM_HELD_OUT_QUESTIONS, NUM_HELD_OUT_DOCUMENTS = 12, 6
"""Samples taken from each vocabulary for the set of conversations and documents."""

NUM_TERM_QUESTIONS, NUM_OPTIONS = 12, 4
"""Multiple-choice questions about terms, and options of each question."""


def held_out_samples(icd: list[tuple[str, str]], hpo: list[HpoTerm]) -> Iterator[dict]:
    """The kinds of samples that are trained on: questions about pictures, codes and terms, and documents."""
    for picture in HELD_OUT_PICTURES:
        yield chat(f"{picture.name}-q0", [picture], MODALITY_QUESTION, MODALITY_NAMES[picture.modality])
    yield from text_samples(icd, hpo, FIRST, NUM_HELD_OUT_QUESTIONS, NUM_HELD_OUT_DOCUMENTS)


def choice_samples(hpo: list[HpoTerm]) -> Iterator[dict]:
    """Multiple-choice questions: the modality of each picture, and the definition of terms."""
    names = list(MODALITY_NAMES.values())
    for number, picture in enumerate(HELD_OUT_PICTURES):
        options, right = _options(names, names.index(MODALITY_NAMES[picture.modality]), number)
        asked = [image_part(picture), text_part(MODALITY_QUESTION)]
        for record in choice_records(f"modality-{picture.name}", asked, options, right):
            yield record | notes([picture])
    first = FIRST + NUM_HELD_OUT_QUESTIONS + NUM_HELD_OUT_DOCUMENTS
    terms = choose_terms(hpo, first, NUM_TERM_QUESTIONS)
    definitions = [term.definition for term in terms]
    for number, term in enumerate(terms):
        options, right = _options(definitions, number, number)
        for record in choice_records(f"definition-{term.term_id[3:]}", hpo_question(term), options, right):
            yield record | HPO_NOTES


def _options(answers: list[str], right: int, number: int) -> tuple[list[str], int]:
    """The right answer and those that follow it in the list, the right one at a place that changes with the number."""
    place = number % NUM_OPTIONS
    return [answers[(right - place + step) % len(answers)] for step in range(NUM_OPTIONS)], place
