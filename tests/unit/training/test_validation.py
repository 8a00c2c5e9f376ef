"""What becomes of the losses of a validation: lines of validation.jsonl, a sentence on the terminal."""

import io
import json

import pytest

from megatron_medx.data.samples import Choice, SampleNotes
from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder.quantities import VALIDATION
from megatron_medx.training import validation
from megatron_medx.training.loss import StepLosses
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.sample_losses import SampleFacts, SampleLoss
from megatron_medx.training.validation import ValidationLog


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Of the reporting rank; the samples of a set are those that the only microbatch has."""
    monkeypatch.setattr(validation, "gather_samples", lambda rows: rows[0])
    screen = io.StringIO()
    return ValidationLog(tmp_path, StepMonitor(get_recipe("demo"), tmp_path, screen)), tmp_path, screen


def losses_of(*losses, notes=None):
    """Step losses of one microbatch, samples of two trained tokens."""
    found = StepLosses()
    entry = found.add(["row"])
    entry.loss_sum = 0.0
    entry.samples = [
        SampleLoss(SampleFacts(f"s{number}", notes or SampleNotes(), 70, 2, 4, 2.0), loss, loss, loss)
        for number, loss in enumerate(losses)
    ]
    return found


def lines(folder):
    path = folder / "validation.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_set_has_a_line_and_a_sentence(log):
    told, folder, screen = log
    told.start(4)
    told.record("validation", 6, losses_of(2.0, 6.0), 0.25)
    told.record("chest", 2, losses_of(1.0), 0.125)
    first, second = lines(folder)
    assert list(first)[:3] == ["step", "set", "rows"] and set(first) == set(VALIDATION)
    assert (first["step"], first["set"], first["loss"], first["rows"], first["tokens"]) == (
        4,
        "validation",
        2.0,
        6,
        140,
    )
    assert (second["step"], second["set"], second["loss"], second["rows"]) == (4, "chest", 0.5, 2)
    said = screen.getvalue()
    assert "step 4: validation loss 2.0000, perplexity 7.389, 1.4427 bits/byte, 6 rows, 140 tokens, in 0.2 s\n" in said
    assert "step 4: chest loss 0.5000" in said
    assert told.is_done(4) and not told.is_done(5)


def test_a_loss_that_is_no_number_is_null(log):
    told, folder, screen = log
    told.start(4)
    told.record("validation", 6, losses_of(float("inf")), 1.0)
    assert lines(folder)[0]["loss"] is None and "validation loss not finite, 6 rows" in screen.getvalue()


def test_questions_that_are_not_whole_are_told(log):
    told, _, screen = log
    told.start(0)
    told.record("codes", 2, losses_of(1.0, 2.0, notes=SampleNotes(choice=Choice("q", 3, False))), 1.0)
    assert "questions not counted, as their options are not all in these rows: 1" in screen.getvalue()


def test_a_step_that_is_repeated_is_told_once(log):
    told, folder, _ = log
    for step in (0, 2, 4, 6, 4):
        told.start(step)
        for name in ("validation", "chest"):
            told.record(name, 2, losses_of(1.0), 1.0)
    assert [(line["step"], line["set"]) for line in lines(folder)] == [
        (step, name) for step in (0, 2, 4) for name in ("validation", "chest")
    ]


def test_another_stage_has_nothing_to_tell(log):
    told, folder, _ = log
    told.start(3)
    told.record("validation", 6, StepLosses(), 1.0)
    assert not lines(folder)
