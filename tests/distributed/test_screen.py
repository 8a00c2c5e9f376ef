"""What a run shows and what it leaves: few lines on the screen, the rest in files."""

import pytest
from grids import ONE

from megatron_medx.run_folder.quantities import STEP


@pytest.fixture(scope="module", params=[ONE, "tp2"])
def run(runs, request):
    """Runs that other tests use, too."""
    return runs.scenario("ten steps", request.param).result().ok()


def test_the_screen_holds_our_lines_and_no_chatter(run):
    lines = run.stdout.splitlines()
    assert 15 <= len(lines) <= 35, run.stdout
    assert run.stderr == ""
    for word in ("arguments ---", "arning", "INFO", "megatron.core", "[rank", "deprecated", "W1", "datetime"):
        assert word not in run.stdout, f"{word!r} in\n{run.stdout}"
    assert "CPU backend on" in run.stdout and "run folder" in run.stdout
    assert "step 1/10" in run.stdout and " left" in run.stdout


def test_megatron_speaks_into_the_logs(run):
    assert "------------------------ arguments" in (run.folder / "logs" / "rank_0.log").read_text()
    ranks = int(run.folder.name.endswith("tp2")) + 1
    assert sorted(path.name for path in run.folder.glob("logs/*")) == [f"rank_{rank}.log" for rank in range(ranks)]


def test_metrics_have_the_keys_of_the_table(run):
    for line in run.metrics():
        assert list(line) == list(STEP)
        assert all(isinstance(line[key], int) for key in ("step", "tokens", "images"))
        assert line["step_time_s"] > 0 and line["model_tflops_per_s"] > 0 and line["tokens"] > 0


def test_tensorboard_and_picture_are_there(run):
    events = list(run.folder.glob("tensorboard/events.out.tfevents.*"))
    assert events and sum(file.stat().st_size for file in events) > 1000
    assert (run.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
