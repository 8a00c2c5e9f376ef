"""Which rows a validation goes through, and what becomes of their losses."""

import io
import json
from types import SimpleNamespace

import pytest
import torch

from megatron_medx.recipes import get_recipe
from megatron_medx.training import validation
from megatron_medx.training.loss import StepLosses
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.validation import ValidationLog, endless_passes


class Loader:
    """Hands over what it was made of, and remembers being closed."""

    def __init__(self, rows):
        self.rows, self.is_closed = rows, False

    def __next__(self):
        assert not self.is_closed
        return next(self.rows)

    def close(self):
        self.is_closed = True


@pytest.mark.parametrize("rows", [[5], [5, 3, 9]])
def test_each_pass_has_the_same_rows_and_leaves_no_loader_open(rows):
    loaders = []

    def start(wanted):
        loaders.append(Loader(wanted))
        return loaders[-1]

    passes = endless_passes(start, rows)
    assert not loaders, "nothing is read before it is asked for"
    for number in (1, 2, 3):
        assert [next(passes) for _ in rows] == rows
        assert len(loaders) == number and all(loader.is_closed for loader in loaders)


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Validation of six rows on 3 x 2 data- and context-parallel ranks, and what the five others add."""
    groups = SimpleNamespace(
        get_data_parallel_world_size=lambda: 3,
        get_context_parallel_world_size=lambda: 2,
        get_data_parallel_group=lambda with_context_parallel: "all",
    )
    others = torch.tensor([30.0, 5.0, 107.0, 2.0**40], dtype=torch.float64)
    monkeypatch.setattr(validation, "mpu", groups)
    monkeypatch.setattr(validation, "dist", SimpleNamespace(all_reduce=lambda total, group: total.add_(others)))
    config = get_recipe("demo")
    config.training.validate_rows = 6
    screen = io.StringIO()
    return ValidationLog(config, tmp_path, StepMonitor(config, tmp_path, screen)), tmp_path, screen


def losses_of(*entries):
    """Step losses with (loss sum, weights, tokens) of each microbatch."""
    losses = StepLosses()
    for number, (loss_sum, weights, num_tokens) in enumerate(entries):
        entry = losses.add([f"sample {number}"], num_tokens)
        entry.loss_sum, entry.denominator = torch.tensor(loss_sum), torch.tensor(weights, dtype=torch.float64)
    return losses


def lines(folder):
    path = folder / "validation.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_loss_is_one_average_over_all_rows(log):
    """(10 + 20 + 30) / (1 + 4 + 5); a row that two ranks share counts once: (200 + 107 + 1) / 2 tokens."""
    told, folder, screen = log
    told.record(4, losses_of((10.0, 1.0, 200), (20.0, 4.0, 1)), 0.25)
    (line,) = lines(folder)
    assert set(line) == {"step", "loss", "rows", "tokens", "samples_crc", "duration_s"}
    assert (line["step"], line["loss"], line["rows"], line["tokens"]) == (4, 6.0, 6, 154)
    assert isinstance(line["samples_crc"], int) and line["samples_crc"] > 2**39
    assert "step 4: validation loss 6.0000 over 6 rows, 154 tokens, in 0.2 s" in screen.getvalue()
    assert told.is_done(4) and not told.is_done(5)


def test_a_loss_that_is_no_number_is_null(log):
    told, folder, screen = log
    told.record(4, losses_of((float("inf"), 1.0, 2), (1.0, 1.0, 2)), 1.0)
    told.record(5, losses_of((-30.0, -5.0, 2), (0.0, 0.0, 2)), 1.0)  # nothing to divide by
    assert [line["loss"] for line in lines(folder)] == [None, None]
    assert "validation loss not finite" in screen.getvalue()


def test_a_step_that_is_repeated_is_told_once(log):
    told, folder, _ = log
    for step in (2, 4, 6, 4):
        told.record(step, losses_of((1.0, 1.0, 2), (1.0, 1.0, 2)), 1.0)
    assert [line["step"] for line in lines(folder)] == [2, 4]


def test_neither_another_stage_nor_half_a_validation_is_told(log):
    told, folder, _ = log
    told.record(3, StepLosses(), 1.0)
    told.record(6, losses_of((1.0, 1.0, 2)), 1.0)
    assert not lines(folder)
