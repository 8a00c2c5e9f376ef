"""When answers end, what of them is written into the rows and into generations.jsonl."""

import io
import json
from types import SimpleNamespace

import pytest
import torch

from megatron_medx.data.questions import Question, QuestionRow
from megatron_medx.recipes import get_recipe
from megatron_medx.training import generations
from megatron_medx.training.generations import GenerationLog, generate
from megatron_medx.training.monitor import StepMonitor

END, OTHER_END = 8, 9

FILLER = 0


@pytest.fixture
def speak(monkeypatch):
    """A function: tokens of each question, endless -> answers, the rows as they are left, number of passes."""

    def spoken(words, num_tokens):
        rows = [
            QuestionRow([2], SimpleNamespace(tokens_1S=torch.full((1, 8), FILLER)), torch.tensor([1])),
            QuestionRow([0, 1], SimpleNamespace(tokens_1S=torch.full((1, 20), FILLER)), torch.tensor([3, 12])),
        ]
        passes = []

        def next_tokens(model, asked, place):
            assert asked is rows and place == len(passes)
            assert not torch.is_grad_enabled()
            passes.append(place)
            return torch.tensor([words[number][place] for row in asked for number in row.numbers])

        monkeypatch.setattr(generations, "next_tokens", next_tokens)
        answers = generate([], rows, num_tokens, (END, OTHER_END))
        return answers, [row.row.tokens_1S[0].tolist() for row in rows], len(passes)

    return spoken


def test_answers_are_written_where_they_belong_and_told_in_the_order_of_the_questions(speak):
    answers, (first, second), passes = speak({0: [1, 2, 3, 4], 1: [5, 6, 7, 1], 2: [4, 3, 2, 1]}, num_tokens=3)
    assert answers == [[1, 2, 3], [5, 6, 7], [4, 3, 2]] and passes == 3
    assert first == [FILLER] + [4, 3, 2] + [FILLER] * 4
    assert second == [FILLER] * 3 + [1, 2, 3] + [FILLER] * 6 + [5, 6, 7] + [FILLER] * 5


def test_an_answer_ends_with_either_end_and_does_not_go_on(speak):
    answers, _, passes = speak({0: [1, END, 3, 4], 1: [OTHER_END, 6, 7, 1], 2: [4, 3, 2, END]}, num_tokens=4)
    assert answers == [[1], [], [4, 3, 2]] and passes == 4


def test_no_pass_is_made_when_all_have_ended(speak):
    answers, _, passes = speak({0: [1, END], 1: [END, 6], 2: [4, OTHER_END]}, num_tokens=30)
    assert answers == [[1], [], [4]] and passes == 2


class Tokenizer:
    """Speaks numbers."""

    def convert_tokens_to_ids(self, words):
        return [{"<|im_end|>": END, "<|endoftext|>": OTHER_END}[word] for word in words]

    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return " " + " ".join(map(str, tokens))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A function: does this rank report -> log of sets `one` (two questions) and `none`, what is said, passes."""

    def make(reports=True):
        config = get_recipe("demo")
        config.training.validate_generations, config.training.validate_generation_tokens = 2, 3
        asked = {"one": [Question(f"s{number}", f"Why {number}?", "So.", None, 0) for number in range(2)], "none": []}
        encoder = SimpleNamespace(tokenizer=Tokenizer())
        sets = {
            name: SimpleNamespace(num_rows=4, dataset=SimpleNamespace(name=name, encoder=encoder)) for name in asked
        }
        spoken = []

        def speak(model, rows, num_tokens, ends):
            assert num_tokens == 3 and list(ends) == [END, OTHER_END]
            assert rows == asked["one"] and not any(chunk.training for chunk in model)
            spoken.append(rows)
            return [[1, 2], []]

        def first(dataset, num_rows, num_questions, answer_tokens):
            assert (num_rows, num_questions, answer_tokens) == (4, 2, 3)
            return asked[dataset.name]

        monkeypatch.setattr(generations, "first_questions", first)
        monkeypatch.setattr(generations, "question_rows", lambda dataset, questions: questions)
        monkeypatch.setattr(generations, "generate", speak)
        screen = io.StringIO()
        monitor = StepMonitor(config, tmp_path, screen if reports else None)
        return GenerationLog(config, tmp_path, SimpleNamespace(sets=sets), monitor), screen, spoken

    return make


def lines(folder):
    path = folder / "generations.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_line_has_what_was_asked_said_and_expected(page, tmp_path):
    log, screen, _ = page()
    model = [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)]
    log.record(4, model)
    assert all(chunk.training for chunk in model)
    asked = {"step": 4, "set": "one", "expected": "So."}
    assert lines(tmp_path) == [
        asked | {"sample_id": "s0", "question": "Why 0?", "answer": "1 2"},
        asked | {"sample_id": "s1", "question": "Why 1?", "answer": ""},
    ]
    assert "step 4: 2 answers of set one written to generations.jsonl, 0.0 s" in screen.getvalue()
    assert "step 4: 0 answers of set none" in screen.getvalue()


def test_a_step_that_is_repeated_is_told_once(page, tmp_path):
    log, _, spoken = page()
    for step in (2, 4, 6, 4):
        log.record(step, [])
    assert [line["step"] for line in lines(tmp_path)] == [2, 2, 4, 4] and len(spoken) == 4


def test_a_rank_that_does_not_report_answers_with_the_others_and_writes_nothing(page, tmp_path):
    log, _, spoken = page(reports=False)
    log.record(4, [])
    assert len(spoken) == 1 and not lines(tmp_path)
