"""Curves of a run: which there are, what they hold, how a long run is made short."""

import json
import time

import numpy as np
import pytest
from rich_run import write_rich_run

from megatron_medx.report.panels import MAX_NAMED, NUM_WINDOWS, mixture_panel, step_panels, validation_panels
from megatron_medx.report.record import read_record


def record(folder):
    return read_record(folder, time.time())


def write_steps(folder, num_steps, **values):
    """metrics.jsonl of a rich run with other steps; `values` maps a key to a function of the step."""
    lines = ({"step": step} | {key: value(step) for key, value in values.items()} for step in range(1, num_steps + 1))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def curves(panels, name):
    return {curve.label: curve for curve in next(panel for panel in panels if panel.name == name).curves}


@pytest.fixture
def folder(tmp_path):
    return write_rich_run(tmp_path / "run")


def test_a_short_run_is_drawn_step_by_step(folder):
    panels, absent = step_panels(record(folder), None)
    loss = curves(panels, "loss")
    assert list(loss) == ["loss", "validation loss", "chest"]
    assert loss["loss"].steps.tolist() == list(range(1, 61)) and np.isnan(loss["loss"].values[19])
    assert loss["chest"].has_marks and loss["chest"].steps.tolist() == list(range(0, 61, 10))
    assert list(curves(panels, "gradient-norm")) == ["gradient norm", "tower", "mergers", "decoder"]
    assert list(curves(panels, "learning-rate")) == ["learning rate", "mergers", "decoder"]  # the tower is frozen
    assert absent == ["MFU"]


def test_tokens_per_second_and_shares_are_worked_out(folder):
    write_steps(folder, 30, tokens=lambda step: 100 * step, step_time_s=lambda step: 0.5, mfu=lambda step: 0.4)
    panels, _ = step_panels(record(folder), None)
    assert curves(panels, "tokens")["tokens/s"].values[9] == 2_000
    assert curves(panels, "mfu")["MFU"].values.tolist() == [40.0] * 30


def test_percentiles_are_of_stretches(folder):
    write_steps(folder, 100, step_time_s=lambda step: float(step))
    panels, _ = step_panels(record(folder), None)
    found = curves(panels, "step-time")
    assert found["median"].steps.tolist() == list(range(10, 101, 10))
    assert found["median"].values[0] == 5.5 and found["90 %"].values[0] == pytest.approx(9.1)


def test_a_long_run_is_drawn_as_means_before_its_faint_steps(folder):
    write_steps(folder, 20 * NUM_WINDOWS, loss=lambda step: 2.0 + step % 2, lr=lambda step: 1e-3)
    panels, _ = step_panels(record(folder), None)
    faint, mean = [curve for curve in panels[0].curves if curve.label == "loss"]
    assert faint.is_faint and len(faint.steps) == 20 * NUM_WINDOWS
    assert not mean.is_faint and mean.values.tolist() == [2.5] * NUM_WINDOWS
    assert len(curves(panels, "learning-rate")["learning rate"].steps) == 20 * NUM_WINDOWS


def test_the_parents_curves_have_its_numbers_and_the_same_colors(folder, tmp_path):
    parent = write_rich_run(tmp_path / "parent", num_steps=80, shift=1.0)
    panels, _ = step_panels(record(folder), record(parent))
    found = curves(panels, "loss")
    assert found["loss (parent)"].is_parent and len(found["loss (parent)"].steps) == 80
    assert found["loss (parent)"].values[0] == pytest.approx(found["loss"].values[0] + 1)
    assert found["chest (parent)"].color == found["chest"].color


def test_losses_are_logarithmic_where_they_are_above_0(folder):
    panels, _ = step_panels(record(folder), None)
    assert panels[0].is_logarithmic
    write_steps(folder, 30, loss=lambda step: 0.0)
    panels, _ = step_panels(record(folder), None)
    assert not panels[0].is_logarithmic


def test_sets_modalities_and_sources_have_curves(folder):
    panels = validation_panels(record(folder), None)
    names = [panel.name for panel in panels]
    assert names[:3] == ["perplexity", "bits-per-byte", "accuracy"]
    assert names[3:] == ["by-modality-0", "by-source-0", "by-modality-1", "by-source-1"]
    assert list(curves(panels, "accuracy")) == ["chest"]
    assert curves(panels, "accuracy")["chest"].values[-1] == pytest.approx(55)


def test_of_many_modalities_those_with_most_tokens_have_curves(folder):
    modalities = {f"m{number}": {"loss": 1.0, "tokens": number} for number in range(MAX_NAMED + 5)}
    (folder / "validation.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, "by_modality": modalities}) + "\n")
    found = curves(validation_panels(record(folder), None), "by-modality-0")
    assert len(found) == MAX_NAMED and "m14" in found and "m4" not in found


def test_the_mixture_is_in_shares_of_stretches(folder):
    write_steps(folder, 20, source_tokens=lambda step: {"a": 300, "b": 100} if step <= 10 else {"a": 100})
    found = {curve.label: curve.values.tolist() for curve in mixture_panel(record(folder)).curves}
    assert found == {"a": [75.0, 100.0], "b": [25.0, 0.0]}


def test_without_sources_there_is_no_mixture(folder):
    write_steps(folder, 20, loss=lambda step: 1.0)
    assert mixture_panel(record(folder)) is None
