"""Questions of samples: which are asked, what their prompts are, how they lie in rows with room for answers."""

import pytest
import torch
from transformers import AutoTokenizer

from megatron_medx.data.questions import first_questions, question_rows
from megatron_medx.data.rows import build_row_dataset

CHEST, HEART = "images/cr-chest.dcm", "images/us-heart.dcm"

ROOM = 5


@pytest.fixture
def open_folder(write_folder, run_config):
    """A function: records and fields of section data -> the rows."""

    def make(records, align_tokens=1, **data):
        return build_row_dataset(run_config(write_folder(records), **data), align_tokens)

    return make


def asked(dataset, num_rows, num_questions=100, room=ROOM):
    """The first questions by the ids of their samples."""
    return {question.sample_id: question for question in first_questions(dataset, num_rows, num_questions, room)}


def option(record, correct):
    return record | {"choice": {"question": "q", "num_choices": 2, "correct": correct}}


def test_conversations_that_an_assistant_ends_are_asked(open_folder, chat):
    open_end = chat("open end", "What?", "X-ray")
    open_end["messages"].append({"role": "user", "content": "And why?"})
    records = [
        chat("text", "What is J18?", "Pneumonia"),
        {"id": "doc", "content": "A document."},
        open_end,
        option(chat("right", "Is it?", "Yes"), True),
        option(chat("wrong", "Is it?", "No"), False),
        chat("long", "What is this? " * 15, "Nothing"),
    ]
    dataset = open_folder(records)
    assert asked(dataset, 6).keys() == {"text", "right", "long"}
    assert asked(dataset, 6, room=200).keys() == {"text", "right"}, "beside so long an answer no row has room for it"
    assert not asked(dataset, 6, room=300)


def test_they_come_in_the_order_of_the_rows(open_folder, chat):
    dataset = open_folder([chat(f"s{number}", f"Question {number}?", "Yes") for number in range(9)])
    in_rows = [dataset[j].sample_ids[0] for j in range(9)]
    assert list(asked(dataset, 9)) == in_rows
    assert list(asked(dataset, 9, num_questions=3)) == in_rows[:3]
    assert list(asked(dataset, 2)) == in_rows[:2], "no row is looked at that is not validated"


def test_what_a_question_says(open_folder, chat):
    several = chat("several", "Which two?", "X-ray and ultrasound", (CHEST, HEART))
    several["messages"] += chat("", "And the first?", "X-ray")["messages"]
    records = [several, chat("images", "Which two?", "X-ray and ultrasound", (CHEST, HEART))]
    questions = asked(open_folder(records, seq_len_tokens=512), 2)
    assert (questions["images"].text, questions["images"].expected) == (
        "[image] [image] Which two?",
        "X-ray and ultrasound",
    )
    assert (questions["several"].text, questions["several"].expected) == ("And the first?", "X-ray")


@pytest.mark.parametrize("answer", ["X-ray", "\n\nX-ray"])
def test_a_prompt_is_what_a_server_makes_of_the_conversation(answer, open_folder, chat, demo):
    record = chat("several", "What is J18?", "Pneumonia")
    record["messages"] += chat("", "What is shown?", answer, (CHEST,))["messages"]
    record["messages"][1]["weight"] = 0.5
    record["messages"][3]["weight"] = 0
    dataset = open_folder([record])
    question = asked(dataset, 1)["several"]
    tokenizer = AutoTokenizer.from_pretrained(demo / "processor")
    messages = [turn | {"content": turn["content"]} for turn in record["messages"][:-1]]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    num_image_tokens = int(question.prompt.grids_I3.prod()) // 4
    expected = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * num_image_tokens))["input_ids"]
    assert question.prompt.tokens_S.tolist() == expected + [tokenizer.pad_token_id] * ROOM
    assert question.num_prompt_tokens == len(expected)
    assert not question.prompt.loss_weights_S.any()


def test_rows_hold_the_questions_with_room_behind_each(open_folder, chat):
    texts = [chat(f"s{number}", "What is it? " * (number % 4 + 8), "Yes") for number in range(7)]
    records = [*texts, chat("image", "What is shown?", "X-ray", (CHEST,))]
    dataset = open_folder(records, align_tokens=16, sample_align_tokens=8, seq_len_tokens=128, max_pixels=20000)
    questions = first_questions(dataset, 8, 8, ROOM)
    rows = question_rows(dataset, questions)
    assert sorted(number for row in rows for number in row.numbers) == list(range(8)) and len(rows) > 1
    [length] = {row.row.tokens_1S.shape[1] for row in rows}
    assert length <= 128 and length % 16 == 0, "of one length, for pipeline stages, and no longer than a row"
    for row in rows:
        borders = row.row.cu_seqlens.tolist()
        assert all(border % 8 == 0 for border in borders)
        for place, (number, at) in enumerate(zip(row.numbers, row.answers_at_N.tolist(), strict=True)):
            prompt, start = questions[number].prompt.tokens_S, borders[place]
            assert torch.equal(row.row.tokens_1S[0, start : start + len(prompt)], prompt)
            assert at == start + len(prompt) - ROOM and at + ROOM <= borders[place + 1]
            # positions of the answer count on from the prompt's highest, in all three axes
            before = row.row.positions_3S[:, start:at].max()
            assert torch.equal(row.row.positions_3S[:, at : at + ROOM], (before + 1 + torch.arange(ROOM)).expand(3, -1))
    assert sum(len(row.row.pixels_PC) for row in rows) == sum(
        int(q.prompt.grids_I3.prod(dim=1).sum()) for q in questions
    )


def test_a_row_holds_no_more_patches_than_one_of_training(open_folder, chat):
    records = [chat(f"s{number}", "What?", "X-ray", (CHEST,)) for number in range(3)]
    dataset = open_folder(records, seq_len_tokens=512, max_pixels=20000, max_row_patches=100)
    rows = question_rows(dataset, first_questions(dataset, 3, 3, ROOM))
    assert len(rows) == 3 and all(0 < len(row.row.pixels_PC) <= 100 for row in rows)
