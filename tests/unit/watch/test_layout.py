"""What is on the screen, at which size, of which runs; and that each number on it has a unit and a definition."""

import json
import os
import shutil

import pytest

from megatron_medx.cli import main
from megatron_medx.run_folder.quantities import DERIVED, RANKS, STEP, VALIDATION
from megatron_medx.watch.definitions import definition_pages, shown_quantities
from megatron_medx.watch.layout import CURVES, VALIDATION_CURVE, View, screen_lines
from megatron_medx.watch.numbers import NUMBERS, rows
from megatron_medx.watch.screen import plain_lines
from megatron_medx.watch.watched_run import WatchedRun

NOW_S = 1.9e9


def watched(*folders):
    """As of a second after their last line was written."""
    runs = [WatchedRun(folder) for folder in folders]
    for run in runs:
        os.utime(run.folder / "metrics.jsonl", (NOW_S - 1, NOW_S - 1)) if (
            run.folder / "metrics.jsonl"
        ).exists() else None
        run.look(NOW_S)
    return runs


def screen(runs, width=80, height=24, **view):
    """Lines as text; as many as the screen has, none wider."""
    lines = [line.plain for line in screen_lines(runs, View(**view), width, height)]
    assert len(lines) == (height or len(lines)) and max(map(len, lines)) <= width
    return lines


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 24), (120, 40), (200, 60)])
def test_state_progress_curve_numbers_and_keys_fit_every_terminal(run_folder, width, height):
    lines = screen(watched(run_folder), width, height)
    text = "\n".join(lines)
    assert "running" in lines[0] and "step 2,000 of 2,400 (83.3%)" in lines[1] and "left" in lines[1]
    assert "loss (nats/token)" in text and "nats/token" in text
    for label in ("validation loss", "tokens/s", "MFU", "data wait", "step time, median", "99 %", "slowest rank"):
        assert label in text
    assert lines[-1].startswith("q quit") and "d definitions" in lines[-1]


def test_on_eighty_columns_nearly_all_numbers_are_seen(run_folder):
    text = "\n".join(screen(watched(run_folder)))
    for label in ("gradient norm", "tower", "learning rate", "memory", "restarts", "mixture, reports", "accuracy"):
        assert label in text


def test_the_least_important_numbers_are_dropped_first(run_folder):
    runs = watched(run_folder)
    labels = [row.label for row in rows(runs)]
    seen = [[label for label in labels if label in "\n".join(screen(runs, 60, height))] for height in (8, 14, 24, 60)]
    counts = [len(shown) for shown in seen]
    assert counts == sorted(set(counts)) and "loss" in seen[0]
    assert "loss (nats/token)" not in "\n".join(screen(runs, 60, 8))


@pytest.mark.parametrize("height", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("width", [2, 10, 30])
def test_no_terminal_is_too_small(run_folder, width, height):
    runs = watched(run_folder)
    assert screen(runs, width, height)[-1].startswith("q")
    assert len(definition_pages(width, height)[0]) == height


def test_validation_stands_beside_the_loss_below_it_or_behind_a_key(run_folder):
    runs = watched(run_folder)
    title = "validation loss (nats/token)  1 validation"
    assert any(line.startswith("loss") and title in line for line in screen(runs, 140, 40))
    assert sum(line.startswith(title) for line in screen(runs, 80, 60)) == 1
    assert not any(title in line for line in screen(runs, 80, 24))
    assert any(line.startswith(title) for line in screen(runs, 80, 24, curve=CURVES.index(VALIDATION_CURVE)))


@pytest.mark.parametrize("curve", range(len(CURVES)))
def test_every_curve_is_drawn_and_zoomed(run_folder, curve):
    whole, last = (screen(watched(run_folder), curve=curve, is_zoomed=zoomed) for zoomed in (False, True))
    below = [next(line for line in lines if line.startswith("   step ")).split() for lines in (whole, last)]
    assert below[0][1] in ("0", "1") and below[1][1] in ("1,800", "2,000") and below[0][2] == below[1][2] == "2,000"


def test_gradient_norms_are_drawn_by_part(run_folder):
    lines = screen(watched(run_folder), curve=CURVES.index("grad_norm"))
    assert any(line.startswith("gradient norm  0 gradient norm  1 tower  2 mergers  3 decoder") for line in lines)


def test_several_runs_have_letters_and_a_column_each(run_folder, tmp_path):
    other = shutil.copytree(run_folder, tmp_path / "other")
    (other / "validation.jsonl").unlink()
    lines = screen(watched(run_folder, other), 100, None)
    assert lines[0].startswith("a ") and lines[1].startswith("b ") and "2,000 of 2,400" in lines[1]
    assert "loss (nats/token)  a run  b other" in "\n".join(lines)
    [tokens] = [line.split() for line in lines if line.startswith("tokens/s (tokens/s)")]
    assert tokens[2] == tokens[3]
    [validation] = [line.split() for line in lines if line.startswith("validation loss (nats/token) ")][:1]
    assert len(validation) == 4  # the other run has none


def test_a_number_that_does_not_fit_says_that_it_was_cut(run_folder):
    runs = watched(*[run_folder] * 6)
    [line] = [line for line in screen(runs, 60, 60) if line.startswith("slowest rank")]
    assert "…" in line


def test_what_needs_a_person_stands_below_the_head(run_folder):
    with open(run_folder / "events.jsonl", "a") as file:
        for event, facts in (
            ("save_failed", {"step": 2000, "why": "disk full"}),
            ("job_ended", {"job": "40021", "code": 1, "why": "NCCL"}),
        ):
            file.write(json.dumps({"time": "2030-01-01T00:00:00.000+00:00", "event": event, **facts}) + "\n")
    lines = screen(watched(run_folder))
    assert "stopped" in lines[0] and any(line.startswith("! ") and "disk full" in line for line in lines[2:5])


def test_a_run_without_a_step_says_so(run_folder):
    for name in ("metrics.jsonl", "validation.jsonl", "ranks.jsonl", "events.jsonl"):
        (run_folder / name).unlink()
    for curve in range(len(CURVES)):
        lines = screen(watched(run_folder), curve=curve)
        assert "no value yet" in "\n".join(lines) and "step 0 of 2,400" in lines[1]


def test_a_run_that_has_only_events_is_shown(tmp_path):
    (tmp_path / "run").mkdir()
    line = {"time": "2026-11-23T10:00:00.000+00:00", "event": "job_started", "job": "7", "tasks": 8, "hosts": ["n1"]}
    write(tmp_path / "run" / "events.jsonl", line)
    assert "no recipe yet, 8 ranks" in screen(watched(tmp_path / "run"), 120)[0]


def test_a_run_of_an_older_version_shows_what_it_has(run_folder):
    (run_folder / "ranks.jsonl").unlink()
    line = {
        "loss": 2.5,
        "grad_norm": 1.0,
        "lr": 0.1,
        "tokens": 100,
        "images": 2,
        "step_time_s": 0.5,
        "data_wait_s": 0.1,
    }
    write(run_folder / "metrics.jsonl", *({"step": step, **line, "model_tflops_per_s": 4.0} for step in range(1, 50)))
    write(run_folder / "validation.jsonl", {"step": 40, "loss": 2.25, "rows": 8, "tokens": 99, "duration_s": 0.5})
    text = "\n".join(screen(watched(run_folder), 80, None))
    assert "2.2500 nats/token" in text and "4 TFLOP/s/rank" in text
    assert not any(label in text for label in ("slowest rank", "MFU", "mixture", "tower", "perplexity", "memory"))


def test_lines_that_are_cut_off_or_no_json_break_nothing(run_folder):
    for name in ("metrics.jsonl", "validation.jsonl", "ranks.jsonl", "events.jsonl"):
        with open(run_folder / name, "ab") as file:
            file.write(b'\xff\x00\n[]\n{"step": "x"}\n{"step": 2400, "lo')
    assert "step 2,000 of 2,400" in screen(watched(run_folder))[1]


def test_every_number_has_a_definition_and_a_unit():
    known = {quantity for table in (STEP, RANKS, VALIDATION, DERIVED) for quantity in table.values()}
    assert set(shown_quantities()) <= known
    assert {number.quantity for number in NUMBERS} <= set(shown_quantities())
    assert {STEP[key] for key in CURVES if key != VALIDATION_CURVE} | {VALIDATION["loss"]} <= set(shown_quantities())
    pages = [" ".join(line.plain.strip() for line in page) for page in definition_pages(80, 24)]
    for quantity in shown_quantities():
        unit = f" ({quantity.unit})" if quantity.unit else ""
        assert any(f"{quantity.label}{unit} {quantity.meaning}" in page for page in pages), quantity.label


def test_what_is_shown_is_called_as_it_is_defined(run_folder):
    """No row without its definition, and behind a row's number the unit that stands there."""
    defined = {(quantity.label, quantity.unit) for quantity in shown_quantities()}
    for row in rows(watched(run_folder)):
        is_in_words = row.label in ("time left", "restarts")
        assert {(row.label, row.unit), (row.label.rpartition(", ")[0], row.unit)} & defined or is_in_words, row


def test_plain_text_has_no_control_characters(run_folder, tmp_path):
    odd = tmp_path / "ru\x1b[31mn\x07"
    run_folder.rename(odd)
    lines = plain_lines(watched(odd), 100)
    assert all(line.isprintable() or not line for line in lines) and max(map(len, lines)) <= 100
    assert "ru?[31mn" in lines[0]


def test_once_prints_the_screen_and_ends(run_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["watch", str(run_folder), "--once"]) == 0
    said = capsys.readouterr().out
    assert "step 2,000 of 2,400" in said and "\x1b" not in said
    assert 60 < max(map(len, said.splitlines())) <= 70


def test_without_a_terminal_it_is_printed_once(run_folder, capsys):
    assert main(["watch", str(run_folder)]) == 0
    assert "step 2,000 of 2,400" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["nothing"], "no folder"),
        (["."], "is no run folder"),
        (["run/run.yaml"], "is a file"),
        (["run/checkpoints"], "is no run folder"),
        (["run", "nothing"], "no folder"),
        (["run", "--every", "0"], "--every 0"),
        (["run", "--every", "nan"], "--every nan"),
        (["run"] * 9, "9 runs"),
    ],
)
def test_bad_input_is_refused_plainly(run_folder, monkeypatch, capsys, words, found):
    monkeypatch.chdir(run_folder.parent)
    assert main(["watch", *words, "--once"]) == 2
    said = capsys.readouterr()
    assert found in said.err and "needed:" in said.err and not said.out


def test_a_run_yaml_that_is_damaged_is_refused_plainly(run_folder, capsys):
    (run_folder / "run.yaml").write_text("run: [")
    assert main(["watch", str(run_folder), "--once"]) == 2
    assert "run.yaml" in capsys.readouterr().err
