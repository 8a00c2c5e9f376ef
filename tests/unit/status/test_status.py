"""`medx status`: crafted run folders, the clock handed in; the command as it is typed."""

import io
import json
import subprocess
import sys

import pytest

from megatron_medx.cli import main
from megatron_medx.config.files import write_model_only
from megatron_medx.errors import ConfigError
from megatron_medx.status import run_files, waiting
from megatron_medx.status.lines import status_lines
from megatron_medx.status.words import duration


def test_a_prepared_folder_is_not_started(run):
    report = run.status(30)
    assert (report["state"]["name"], report["step"], report["loss"], report["speed"]) == ("not started", 0, None, None)
    assert report["launches"] == [] and report["left"] is None
    assert any(line.startswith("checkpoints  none yet, one every 120 steps") for line in status_lines(report))


def test_speed_is_of_the_last_steps(run):
    run.metrics(60, 100)
    assert run.status(110)["speed"] == {
        "num_steps": 50,
        "step_time_s": 0.5,
        "tokens_per_s": 200.0,
        "data_wait_share": pytest.approx(0.2),
        "model_tflops_per_s_per_rank": 4.0,
    }
    # ten slow steps before the window; one in it moves the share, not the median
    run.metrics(60, 100, step_time_s={**dict.fromkeys(range(1, 11), 60.0), 60: 25.5})
    speed = run.status(110)["speed"]
    assert speed["step_time_s"] == 0.5 and speed["data_wait_share"] == pytest.approx(0.1)


def test_losses_that_are_no_number_are_passed_over_and_counted(run):
    run.metrics(6, 100, loss={5: None, 6: float("nan")})
    report = run.status(110)
    assert report["loss"] == {
        "step": 4,
        "last": 9.6,
        "num_steps_averaged": 2,
        "mean": pytest.approx(9.65),
        "mean_before": pytest.approx(9.85),
        "num_without": 2,
    }
    (line,) = (line for line in status_lines(report) if line.startswith("loss"))
    assert "9.6000 nats/token at step 4" in line and "-0.2000" in line and "2 recent steps without" in line
    run.metrics(1, 100, loss={1: None})
    report = run.status(110)
    assert report["loss"]["last"] is None and any("none is finite" in line for line in status_lines(report))
    json.dumps(report, allow_nan=False)


def test_the_change_of_the_loss_is_between_the_last_steps_and_as_many_before(run):
    run.metrics(170, 100)
    loss = run.status(110)["loss"]
    assert loss["num_steps_averaged"] == 50
    assert (loss["mean"], loss["mean_before"]) == pytest.approx((10 - 14.55, 10 - 9.55))


def test_lines_that_were_cut_off_are_left_out(run):
    run.metrics(7, 100)
    with open(run.folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 8, "loss": 9.\xc3')
    assert run.status(110)["step"] == 7
    whole = run.folder / "metrics.jsonl"
    assert [line["step"] for line in run_files.tail_lines(whole, 300)] == [6, 7]  # of 110 bytes each
    run.write("metrics.jsonl", "3\nnull\n\n", 100)
    assert run.status(110)["step"] == 0


def test_checkpoints_say_whether_they_are_whole(run):
    run.metrics(55, 100)
    for step in (10, 20, 30):
        run.checkpoint(step, 2 * step)
    run.checkpoint(50, 99, whole=False)
    found = run.status(200)["checkpoints"]
    assert (found["num"], found["resume_step"], found["steps_since"]) == (4, 30, 25)
    newest, second, third = found["last"]
    assert (newest["step"], newest["whole"], newest["bytes"], newest["age_s"]) == (50, False, 700, 101)
    assert newest["missing"] == ["metadata.json", "latest_checkpointed_iteration.txt"]
    assert (second["step"], second["whole"], second["bytes"], second["age_s"]) == (30, True, 702, 140)
    assert third["step"] == 20
    assert [entry["checksums"] for entry in found["last"]] == [False, False, False]
    run.write("checkpoints/iter_0000030/integrity.json", "{}", 60)
    assert "step 30, 0.0 MB, 2 min 20 s old, whole\n" in run.row("checkpoints", 200)
    assert any("step 50, 0.0 MB, 1 min 41 s old, NOT WHOLE" in line for line in status_lines(run.status(200)))
    assert run.status(-500)["checkpoints"]["last"][0]["age_s"] == 0  # a host whose clock is ahead wrote it


def test_validation_exports_bad_steps_and_rejects(run):
    losses = {40: 3.0, 80: 2.5, 120: 2.75}
    lines = [{"step": step, "loss": loss} for step, loss in losses.items()]
    lines += [
        {"step": step, "set": "chest", "loss": None, "accuracy": 0.75, "num_questions": 1, "bits_per_byte": 0.5}
        for step in (0, 40)
    ]
    run.write("validation.jsonl", "".join(json.dumps(line) + "\n" for line in lines), 90)
    entries = [{"step": s, "folder": f"iter_{s:07d}", "kept": s == 80, "validation_loss": losses[s]} for s in (40, 80)]
    run.write("exports/index.json", json.dumps(entries), 90)
    (run.folder / "exports" / "best").symlink_to("iter_0000080")
    bad = {"step": 33, "what": "loss", "loss": "nan", "sample_ids": ["a", "b"]}
    run.write("bad_steps.jsonl", json.dumps(bad) + "\n", 90)
    run.write("rejects.jsonl", "{}\n{}\n", 90)
    run.write("data/rejects.jsonl", "", 0)
    report = run.status(100)
    main, chest = report["validation"]
    shown = {"set": "validation", "num": 3, "step": 120, "loss": 2.75, "loss_before": 2.5}
    assert main.items() >= (shown | {"best_loss": 2.5, "best_step": 80, "accuracy": None}).items()
    assert chest["set"] == "chest" and (chest["num"], chest["loss"], chest["accuracy"]) == (2, None, 0.75)
    assert report["exports"] == {"steps": [80], "best": 80, "deleted": 1, "damaged": False}
    assert report["bad_steps"] == {
        "num": 1,
        "last": {"step": 33, "what": "loss", "loss": "nan", "applied": None, "num_samples": 2},
    }
    assert report["rejects"] == {"damaged": 2, "too_long": 0}
    text = "\n".join(status_lines(report))
    for part in (
        "validation   2.7500 nats/token at step 120, +0.2500 to the one before; best 2.5000 at step 80\n",
        "\n             chest: not finite at step 40; 0.5000 bits/byte; 75.0% of 1 question right\n",
        "1 kept, the last of step 80; 1 gave way to better ones; best: step 80",
        "1, the last step 33: loss not finite, loss nan, 2 samples",
        "2 lines of damaged samples",
    ):
        assert part in text
    run.write("exports/index.json", "[{", 95)
    assert "exports/index.json is damaged" in "\n".join(status_lines(run.status(100)))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nowhere", "no folder"),
        ("data", "is no run folder: it holds neither run.yaml nor events.jsonl"),
        ("run/run.yaml", "is a file"),
        ("run/checkpoints", "holds the checkpoints of a run"),
        ("converted", "holds only the model section"),
    ],
)
def test_what_is_no_run_folder_is_refused(run, tmp_path, capsys, monkeypatch, name, part):
    monkeypatch.setattr(waiting, "APPEAR_S", 0.0)
    (tmp_path / "data").mkdir()
    run.write("checkpoints/run.yaml", (run.folder / "run.yaml").read_text(), 0)
    write_model_only(run.config.model, tmp_path / "converted" / "run.yaml", {})
    assert main(["status", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert part in said and said.startswith("found:") and "do:     " in said


def test_a_file_that_cannot_be_read_is_named(run):
    (run.folder / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: Is a directory"):
        run.status(10)


def test_the_command_says_and_writes_one_report(run, tmp_path, capsys):
    run.metrics(60, 100)
    assert main(["status", str(run.folder), "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert capsys.readouterr().out.splitlines() == status_lines(report)
    assert report["step"] == 60 and report["state"]["name"] == "stale"


def test_it_answers_without_torch(run):
    program = (
        "import sys\nfrom megatron_medx.cli import main\n"
        f"main(['status', {str(run.folder)!r}])\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'megatron', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_what_training_writes_is_what_is_read(run):
    import torch

    from megatron_medx.training import monitor

    steps = monitor.StepMonitor(run.config, run.folder, io.StringIO())
    steps.step_time_s = 0.25
    reduced = {"loss": 3.5, "tokens": 80.0, "images": 3.0, "model_flops": 1e12, "samples_crc": 7e9}
    steps.step(1, {key: torch.tensor(value, dtype=torch.float64) for key, value in reduced.items()}, 1.5)
    report = run.status(10)
    steps.close()
    assert (report["step"], report["loss"]["last"], report["speed"]["tokens_per_s"]) == (1, 3.5, 320.0)
    assert report["speed"]["model_tflops_per_s_per_rank"] == 2.0  # 4 TFLOP/s on 2 ranks


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (-3, "0 s"),
        (45.4, "45 s"),
        (725, "12 min 5 s"),
        (11_520, "3 h 12 min"),
        (187_200, "2 d 4 h"),
        (3600, "1 h 0 min"),
    ],
)
def test_durations(time_s, text):
    assert duration(time_s) == text
