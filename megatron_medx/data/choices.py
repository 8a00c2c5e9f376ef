"""Multiple-choice questions as lines of samples.jsonl, one conversation for each option, and where they may not be."""

from collections.abc import Sequence

from megatron_medx.data.microbatch import Microbatch
from megatron_medx.errors import DataError


def choice_records(question_id: str, question: str | list[dict], options: Sequence[str], answer: int) -> list[dict]:
    """The lines of one question, one for each option; `medx data build` takes them as they are.

    Args:
        question_id: becomes `choice.question`, and with a number the id of each line.
        question: content of the user's turn, a text or a list of parts with images.
        options: at least two different texts.
        answer: number of the right one, from 0.

    Raises:
        ValueError: fewer than two options, two equal ones, or an answer that is none of them.
    """
    if len(options) < 2 or len(set(options)) < len(options) or not 0 <= answer < len(options):
        raise ValueError(f"question {question_id}: options {list(options)}, answer {answer}")
    return [
        {
            "id": f"{question_id}-{number}",
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": option}],
            "choice": {"question": question_id, "num_choices": len(options), "correct": number == answer},
        }
        for number, option in enumerate(options)
    ]


def refuse_wrong_options(row: Microbatch) -> None:
    """Stop before a wrong answer is learned.

    Raises:
        DataError: a sample of the row is a wrong option of a question.
    """
    for sample_id, notes in zip(row.sample_ids, row.sample_notes, strict=True):
        if notes.choice is not None and not notes.choice.correct:
            raise DataError(
                f"sample {sample_id} of the training data is a wrong option of question {notes.choice.question}",
                "answers to learn; multiple-choice questions are for validation",
                "build the questions into a folder of their own, for data.validation_sets.NAME, and the training data "
                "without them",
            )
