"""metrics.jsonl, the terminal's line and the curve."""

import io
import json

import torch

from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder.quantities import STEP
from megatron_medx.training import monitor as the_module
from megatron_medx.training.loss_curve import draw_loss_curve
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.step_lines import read_metrics


def monitored(folder, steps, screen=None):
    """A monitor that has seen these steps."""
    config = get_recipe("demo")
    config.training.steps, config.log.tensorboard = 9, False
    monitor = StepMonitor(config, folder, io.StringIO() if screen is None else screen)
    monitor.step_time_s, monitor.rates = 0.5, {"lr": 1e-3, "lr_vision": 1e-4}
    for step in steps:
        reduced = {"loss": 10.0 - step, "tokens": 80.0, "images": 3.0, "model_flops": 4e12, "samples_crc": 7e9}
        monitor.step(step, {key: torch.tensor(value, dtype=torch.float64) for key, value in reduced.items()}, 1.5)
    monitor.close()
    return monitor


def test_a_step_is_a_line_with_the_documented_keys(tmp_path):
    monitored(tmp_path, [1, 2])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [list(STEP), list(STEP)]
    assert lines[1]["loss"] == 8.0 and lines[1]["tokens"] == 80 and lines[1]["images"] == 3
    assert lines[1]["model_tflops_per_s"] == 4.0  # 4 TFLOP in half a second on 2 ranks
    assert lines[1]["lr_vision"] == 1e-4 and lines[1]["lr_merger"] is None
    assert lines[1]["source_tokens"] == {} and lines[1]["mfu"] is None
    assert 0.01 < lines[1]["memory_gb"] < 100


def test_mfu_is_of_the_peak_of_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(the_module, "gpu_peak_flops", lambda: 16e12)
    monitored(tmp_path, [1])
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["mfu"] == 0.25


def test_a_loss_that_is_no_number_is_null_and_a_skipped_step_is_marked(tmp_path):
    """0 / 0 without trained tokens; the file stays JSON, the terminal and the curve go on."""
    screen = io.StringIO()
    config = get_recipe("demo")
    config.log.tensorboard = False
    monitor = StepMonitor(config, tmp_path, screen)
    monitor.step_time_s = 0.5
    counts = dict.fromkeys(("tokens", "images", "model_flops", "samples_crc"), torch.tensor(3.0, dtype=torch.float64))
    monitor.step(1, counts | {"loss": torch.tensor(float("nan"))}, 0.0)
    monitor.step(2, counts | {"loss": torch.tensor(float("inf"))}, None, skipped=True)
    monitor.step(3, counts | {"loss": torch.tensor(2.0)}, None, skipped=True)
    monitor.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["loss"] for line in lines] == [None, None, 2.0]
    assert [line.get("skipped") for line in lines] == [None, True, True]
    assert "step 1/240  loss none  grad norm 0.00" in screen.getvalue()
    draw_loss_curve(lines, tmp_path / "loss.png")
    draw_loss_curve(lines[:2], tmp_path / "loss.png")


def test_a_resume_drops_the_steps_that_it_repeats(tmp_path):
    monitored(tmp_path, [1, 2, 3, 4, 5])
    monitored(tmp_path, [4, 5, 6])
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_last_line_cut_off_is_left_out(tmp_path):
    monitored(tmp_path, [1, 2])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_rank_that_does_not_report_writes_nothing(tmp_path):
    monitor = StepMonitor(get_recipe("demo"), tmp_path, None)
    monitor.step(1, {"loss": torch.tensor(1.0)}, 1.0)
    monitor.close()
    assert not list(tmp_path.iterdir())


def test_the_terminal_shows_loss_rate_and_time_left(tmp_path):
    screen = io.StringIO()
    monitored(tmp_path, [1], screen)
    said = screen.getvalue()
    assert "step 1/9  loss 9.0000  grad norm 1.50  lr 1.00e-03  0.50 s/step  160 tokens/s" in said
    assert "0:04 left" in said  # eight more steps of half a second


def test_the_curve_is_a_picture(tmp_path):
    monitored(tmp_path, range(1, 10))
    draw_loss_curve(read_metrics(tmp_path / "metrics.jsonl"), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_validations_are_points_of_the_curve_where_they_are_finite(tmp_path):
    monitored(tmp_path, range(1, 10))
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    pictures = []
    for number, losses in enumerate(((), (None,), (None, 5.0), (7.0, 5.0))):
        path = tmp_path / f"{number}.png"
        draw_loss_curve(metrics, path, [{"step": 3 * step, "loss": loss} for step, loss in enumerate(losses, 1)])
        pictures.append(path.read_bytes())
    assert len(pictures[0]) > 1000 and len(set(pictures[1:])) == 3
