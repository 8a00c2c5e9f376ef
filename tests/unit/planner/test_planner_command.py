"""`medx plan`: words, exit codes, width and units of the table, the schema of the JSON, seconds and memory."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_medx.cli import main
from megatron_medx.planner.lines import report_lines
from megatron_medx.planner.plan import make_plan
from megatron_medx.recipes import get_recipe

MEASURED = """
import json, sys, time
from pathlib import Path
start = time.process_time()
from megatron_medx.cli import main
from megatron_medx.recipes import RECIPES
seconds = {}
sys.stdout = open("/dev/null", "w")
for name in RECIPES:
    assert main(["plan", name, *(["--picture", sys.argv[1]] if name == "pretrain_235b_a22b" else [])]) == 0, name
    now = time.process_time()
    seconds[name], start = now - start, now
loaded = sorted({"torch", "megatron", "transformers"} & set(sys.modules))
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
json.dump({"seconds": seconds, "peak_bytes": peak, "loaded": loaded}, sys.__stdout__)
"""


def test_every_shipped_recipe_is_planned_in_seconds_and_little_memory_without_torch(tmp_path):
    """All in one process, so its peak is above that of each; seconds of the processor, since others may use it too.

    Seen on one core: 0.03 to 1.2 s, and 127 MB, of which pyarrow (the demo's data) and matplotlib are most.
    """
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "timeline.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loaded"] == []
    assert max(found["seconds"].values()) < 5, found["seconds"]
    assert found["peak_bytes"] < 300e6, found["peak_bytes"]
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def planned(capsys, *words) -> str:
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


TABLES = (["pretrain_8b", "--gpus", "64"], ["pretrain_235b_a22b", "--gpus", "512"], ["demo_moe"])

UNITS = r"(GB|ms|s|%|T|B|M|[EPTGM]FLOP|TFLOP/s|GB/s|MFU|GPUs|rows|layers|stages|steps|days|hours|GPU-hours|a GPU)"


def test_the_table_fits_100_columns_and_says_everything(capsys):
    for words in TABLES:
        lines = planned(capsys, *words).splitlines()
        assert max(map(len, lines)) <= 100
        text = " ".join(lines)
        for entry in ("parameters", "memory", "sent a step", "step time", "speed", "whole run", "GPU-hours", "MFU"):
            assert entry in text


@pytest.mark.parametrize("words", TABLES, ids=lambda words: words[0])
def test_fractions_have_a_unit_but_in_columns_that_state_one(words, capsys):
    lines = planned(capsys, *words).splitlines()
    text = re.sub(r"\s+", " ", " ".join(line for line in lines if not re.search(r"(\d+\.\d +){2}", line)))
    without = [found for found in re.findall(r"[\d,]+\.\d+.{0,12}", text) if not re.match(rf"[\d.,]+ ?{UNITS}", found)]
    assert [found for found in without if "samples" not in found and "images" not in found] == []


def test_memory_stands_by_stage_and_kind(capsys):
    report = json.loads(planned(capsys, "pretrain_235b_a22b", "--json"))
    stages = report["memory"]["stages"]
    lines = report_lines(report)
    head = next(number for number, line in enumerate(lines) if "GB of stage" in line)
    assert lines[head].split()[-len(stages) :] == [str(number) for number in range(len(stages))]
    weights = lines[head + 1].split()
    assert weights[0] == "weights" and weights[1:] == [f"{stage['weights'] / 1e9:.1f}" for stage in stages]
    sums = next(line for line in lines[head:] if line.split()[0] == "sum").split()[1:]
    assert max(map(float, sums)) == pytest.approx(report["memory"]["worst_rank_bytes"] / 1e9, abs=0.051)


def test_a_plan_as_json_alone_and_in_a_file(capsys, tmp_path):
    alone = json.loads(planned(capsys, "pretrain_8b", "--json"))
    table = planned(capsys, "pretrain_8b", "--json", str(tmp_path / "plan.json"))
    assert json.loads((tmp_path / "plan.json").read_text()) == alone
    assert table.splitlines() == report_lines(alone)  # the table is made of the report alone


def test_the_schema_is_stable(capsys):
    """A change of these names is a change of `report.SCHEMA`."""
    report = json.loads(planned(capsys, "pretrain_235b_a22b", "--gpus", "512", "training.recompute=full", "--json"))
    assert report["schema"] == 1
    assert list(report) == [
        "schema", "recipe", "gpus", "grid", "recompute", "precision", "parameters", "memory", "data", "flops_per_step",
        "traffic", "pipeline", "step_seconds", "speed", "run", "better", "ceilings",
    ]  # fmt: skip
    assert list(report["grid"]) == [
        "world_size", "tensor", "pipeline", "virtual_pipeline", "first_stage_layers", "last_stage_layers", "context",
        "expert", "data", "from",
    ]  # fmt: skip
    assert list(report["memory"]) == ["limit_bytes", "worst_rank_bytes", "margin_bytes", "worst_rank", "stages"]
    assert list(report["data"]) == [
        "source", "is_assumed", "rows_per_step", "token_slots_per_row", "filled_share", "image_token_share",
        "samples_per_row", "images_per_row", "patches_per_row",
    ]  # fmt: skip
    assert set(report["flops_per_step"]) == {"vision", "merger", "decoder", "output", "total"}
    assert [entry["axis"] for entry in report["traffic"]] == [
        "tensor", "context", "images", "expert", "pipeline", "data", "expert data"
    ]  # fmt: skip
    assert set(report["traffic"][0]) == {"axis", "ranks", "bytes_per_step", "link", "bytes_per_s"}
    assert list(report["pipeline"]) == ["rows_per_replica", "seconds", "idle_share", "stages"]
    assert list(report["step_seconds"]) == ["total", "by_kind"]
    assert list(report["speed"]) == [
        "model_tflops_per_s_per_gpu", "mfu", "token_slots_per_s", "token_slots_per_s_per_gpu",
        "slowest_replica_over_mean",
    ]  # fmt: skip
    assert list(report["run"]) == ["steps", "token_slots", "hours", "days", "gpu_hours"]
    assert set(report["better"][0]) == {
        "overrides", "step_seconds", "saved_share", "mfu", "worst_rank_bytes", "gpu_hours"
    }  # fmt: skip
    assert set(report["ceilings"][0]) == {"name", "value", "unit", "source"}


def test_numbers_of_the_report_agree(capsys):
    report = json.loads(planned(capsys, "pretrain_32b", "--json"))
    step = report["step_seconds"]
    assert sum(step["by_kind"].values()) == pytest.approx(step["total"])
    assert report["run"]["gpu_hours"] == pytest.approx(report["run"]["steps"] * step["total"] / 3600 * report["gpus"])
    flops = report["flops_per_step"]
    rate = flops["total"] / step["total"] / report["gpus"]
    assert report["speed"]["model_tflops_per_s_per_gpu"] == pytest.approx(rate / 1e12)
    assert report["speed"]["mfu"] == pytest.approx(rate / 989.4e12)
    memory = report["memory"]
    assert max(sum(kinds.values()) for kinds in memory["stages"]) == memory["worst_rank_bytes"]
    assert memory["margin_bytes"] == 80e9 - memory["worst_rank_bytes"]


def test_gpus_without_a_shipped_grid_get_the_best_that_the_search_finds(capsys):
    report = json.loads(planned(capsys, "pretrain_8b", "--gpus", "192", "--json"))
    assert report["gpus"] == 192 and report["grid"]["from"] == "the fastest that the search found"
    assert report["better"] == []
    chosen = json.loads(planned(capsys, "pretrain_8b", "--gpus", "192", "parallel.pipeline=3", "--json"))
    assert chosen["grid"]["from"] == "as asked" and chosen["grid"]["pipeline"] == 3


def test_better_grids_for_a_shipped_number_of_gpus_can_be_pasted(capsys):
    """With everything recomputed, which some grid can do without."""
    words = ["pretrain_8b", "--gpus", "256", "training.recompute=full", "training.recompute_vision=full"]
    report = json.loads(planned(capsys, *words, "--json"))
    assert report["grid"]["from"] == "the recipe's"
    for entry in report["better"]:
        again = json.loads(planned(capsys, *words, *entry["overrides"].split(), "--json"))
        assert again["step_seconds"]["total"] == pytest.approx(entry["step_seconds"])
    assert "training.recompute=none" in report["better"][0]["overrides"]


def test_better_grids_are_better_and_can_be_pasted(capsys):
    report = json.loads(planned(capsys, "pretrain_8b", "parallel.tensor=8", "--json"))
    assert 1 <= len(report["better"]) <= 3
    for entry in report["better"]:
        again = json.loads(planned(capsys, "pretrain_8b", "parallel.tensor=8", *entry["overrides"].split(), "--json"))
        assert again["step_seconds"]["total"] == pytest.approx(entry["step_seconds"])
        assert again["run"]["gpu_hours"] < report["run"]["gpu_hours"]


def test_assumptions_are_the_users(capsys):
    report = json.loads(planned(capsys, "pretrain_8b", "--assume", "image_share=0,sample_tokens=4096", "--json"))
    assert report["data"]["source"] == "assumed: samples of 4,096 tokens, no images"
    assert report["flops_per_step"]["vision"] == 0


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["pretrain_235b_a22b", "--gpus", "16"], "16 GPUs, 512 rows a step: no legal grid of them fits"),
        (["pretrain_32b", "parallel.pipeline=1", "parallel.tensor=1", "parallel.context=1",
          "parallel.first_stage_layers=none", "parallel.last_stage_layers=none"], "GB estimated on the worst rank of"),
        (["pretrain_8b", "parallel.tensor=3"], "parallel.tensor 3"),
        (["pretrain_8b", "--json", "parallel.tensor=2"], "--json parallel.tensor=2"),
        (["pretrain_8b", "--assume", "images=1"], "--assume images=1"),
        (["pretrain_8b", "--assume", "image_share=half"], "--assume image_share=half"),
        (["pretrain_8b", "--assume", "image_share=2"], "--assume with"),
        (["pretrain_9b"], "unknown recipe pretrain_9b"),
        (["pretrain_8b", "--picture", "/nowhere/timeline.png"], "/nowhere/timeline.png"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_ends_with_2(words, found, capsys):
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert found in error and "needed:" in error and "do:" in error


def test_a_refusal_names_the_fewest_gpus(capsys):
    assert main(["plan", "pretrain_235b_a22b", "--gpus", "16"]) == 2
    assert re.search(r"take \d+ GPUs, the fewest .*: parallel\.", capsys.readouterr().err)


def test_the_picture_has_a_bar_for_every_stage(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from megatron_medx.planner.picture import draw_timeline

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plan = make_plan(get_recipe("pretrain_235b_a22b"), "the recipe's")
    draw_timeline(plan.prediction, "title", tmp_path / "timeline.png")
    (axes,) = drawn[0].axes
    stages = len(plan.prediction.timeline.stages)
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"stage {number}" for number in range(stages)]
    assert len(axes.collections) == 2 * stages + 1
    assert axes.get_xlim()[1] == pytest.approx(plan.prediction.step_s)
