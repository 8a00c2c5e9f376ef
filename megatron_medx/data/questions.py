"""Questions of samples in rows with room for their answers: what a model is asked while it trains.

Comes in: the rows of a validation set (rows.py) and how long answers may get. Goes out: the first conversations of them
that an assistant ends, each without its last answer, in rows like those of training: the same shortening, alignment and
positions. In place of an answer stands filler, which its tokens are written over one by one; attention is causal within
a sample, so what still stands behind them has no influence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from megatron_medx.data.chat import EncodedSample, SampleTooLong
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.plan.packing import join
from megatron_medx.data.plan.row_plan import aligned_tokens
from megatron_medx.data.reader import DamagedSample
from megatron_medx.data.rows import RowDataset
from megatron_medx.data.samples import ImagePart, Message, Sample, TextPart

IMAGE_WORD = "[image]"
"""What a question's text shows where an image stands."""

STAND_IN = Message("assistant", (TextPart("A"),))
"""In place of the answer while the prompt is rendered. It begins with a letter: a line break could become one token
with the one that ends the header, and the prompt would be another than at inference."""


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation up to where its last answer begins."""

    sample_id: str
    text: str
    """Of the last user turn, each image as IMAGE_WORD."""
    expected: str
    """The sample's own answer."""
    prompt: EncodedSample
    """Its tokens, with room for the answer at their end."""
    num_prompt_tokens: int
    """Of them before the answer."""


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """Questions side by side."""

    numbers: list[int]
    """Of its questions, among all that were laid into rows."""
    row: Microbatch
    """Its `tokens_1S` are written into as answers grow."""
    answers_at_N: torch.Tensor
    """(N,) int64 position in the row of each answer's first token."""


def first_questions(dataset: RowDataset, num_rows: int, num_questions: int, answer_tokens: int) -> list[Question]:
    """The first questions of a set, in the order of its rows; fewer where it has no more.

    Passed over are documents, conversations that no assistant ends, wrong options of multiple choice, and samples that
    do not fit a row together with the room for an answer, or cannot be read, which validation itself tells of.

    Args:
        dataset: of the set.
        num_rows: that are looked at, from the first on.
        num_questions: at most.
        answer_tokens: room for each answer.
    """
    encoder = dataset.encoder
    room_S = torch.full((answer_tokens,), encoder.tokenizer.pad_token_id)
    room_tokens = aligned_tokens(answer_tokens, encoder.sample_align_tokens)
    encoder = replace(encoder, seq_len_tokens=encoder.seq_len_tokens - room_tokens)
    questions: list[Question] = []
    samples = (place for j in range(num_rows) for place in dataset.plan.row(j))
    while len(questions) < num_questions and (place := next(samples, None)):
        source, number = place
        try:
            stored = dataset.readers[source].read(number)
            if _asks(stored.sample):
                encoded = encoder.encode(_without_answer(stored.sample), stored.files)
                questions.append(_question(stored.sample, encoded, room_S))
        except (DamagedSample, SampleTooLong):
            continue
    return questions


def question_rows(dataset: RowDataset, questions: Sequence[Question]) -> list[QuestionRow]:
    """The questions in few rows, all of one length, each no longer than a row of training; their images are decoded.

    Args:
        dataset: that the questions are of.
        questions: at least one.
    """
    encoder = dataset.encoder
    tokens = [aligned_tokens(len(question.prompt.tokens_S), encoder.sample_align_tokens) for question in questions]
    patches = [int(question.prompt.grids_I3.prod(dim=1).sum()) for question in questions]
    row_of = join(np.array(tokens), np.array(patches), encoder.seq_len_tokens, encoder.max_row_patches)
    length = aligned_tokens(int(np.bincount(row_of, tokens).max()), dataset.align_tokens)
    rows = []
    for number in range(row_of.max() + 1):
        own = np.flatnonzero(row_of == number).tolist()
        row = dataset.lay([questions[index].prompt for index in own], pad_to_tokens=length)
        prompts_N = torch.tensor([questions[index].num_prompt_tokens for index in own])
        rows.append(QuestionRow(own, row, row.cu_seqlens[: len(own)].long() + prompts_N))
    return rows


def _asks(sample: Sample) -> bool:
    """Whether its last answer is one to be compared with: of a multiple-choice question's options the correct one."""
    ends_answered = bool(sample.messages) and sample.messages[-1].role == "assistant"
    return ends_answered and (sample.choice is None or sample.choice.correct)


def _without_answer(sample: Sample) -> Sample:
    """The sample with STAND_IN for its last message, the only one that is learned: that shows where it begins."""
    before = tuple(replace(message, weight=0.0) for message in sample.messages[:-1])
    return replace(sample, messages=(*before, STAND_IN))


def _question(sample: Sample, encoded: EncodedSample, room_S: torch.Tensor) -> Question:
    """The prompt of an encoded sample without its answer, and filler behind it: room for the answer's tokens."""
    prompt_S = encoded.tokens_S[: int(encoded.loss_weights_S.nonzero()[0, 0])]
    tokens_S = torch.cat([prompt_S, room_S])
    asked = [message for message in sample.messages if message.role == "user"][-1:]
    return Question(
        sample.sample_id,
        " ".join(_shown(asked[0])) if asked else "",
        "".join(part.text for part in sample.messages[-1].parts),
        replace(encoded, tokens_S=tokens_S, loss_weights_S=torch.zeros(len(tokens_S))),
        len(prompt_S),
    )


def _shown(message: Message) -> Iterator[str]:
    """Its parts as text."""
    for part in message.parts:
        yield f"{part.position} {IMAGE_WORD}".strip() if isinstance(part, ImagePart) else part.text
