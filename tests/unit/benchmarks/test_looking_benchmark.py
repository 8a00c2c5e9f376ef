"""The made-up long run, and the benchmark of looking at it: figures by hand, targets, what a page fetches."""

import json

import pytest

from benchmarks import looking
from benchmarks.long_run import SETS, make_run
from megatron_medx.status.report import run_status
from megatron_medx.status.series import RankSeries, StepSeries, ValidationSeries

FOUND = {
    "watch": {"seconds": 1.5, "cpu_seconds": 1.4, "peak_bytes": 65e6},
    "report": {"seconds": 6.0, "cpu_seconds": 5.0, "peak_bytes": 250e6},
    "json": {"seconds": 3.0, "cpu_seconds": 2.0, "peak_bytes": 1e9},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long") / "run"
    make_run(folder, num_steps=2_000, num_ranks=4)
    return folder


def test_the_made_run_is_one_that_all_readers_take(made):
    status = run_status(made, 2e9)
    assert (status["step"], status["steps"], len(status["launches"])) == (2_000, 2_400, 4)
    steps, ranks = StepSeries(made / "metrics.jsonl"), RankSeries(made / "ranks.jsonl", 50)
    validations = ValidationSeries(made / "validation.jsonl", "validation")
    for series in (steps, ranks, validations):
        series.refresh()
    assert list(steps.steps) == list(range(1, 2_001)) and len(steps.sources) == 3
    assert ranks.num_ranks == 4 and list(validations.sets) == list(SETS)
    assert [line["step"] for line in validations.sets["chest"]] == [0, 1_000, 2_000]


def test_the_made_run_is_the_same_every_time(made, tmp_path):
    make_run(tmp_path / "again", num_steps=2_000, num_ranks=4)
    make_run(tmp_path / "other", num_steps=2_000, num_ranks=4, seed=1)
    for name in ("metrics.jsonl", "ranks.jsonl", "validation.jsonl", "events.jsonl"):
        assert (made / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (made / "metrics.jsonl").read_bytes() != (tmp_path / "other" / "metrics.jsonl").read_bytes()


def test_the_rival_reads_every_line(made):
    num_lines = sum(len(path.read_text().splitlines()) for path in made.glob("*.jsonl"))
    assert looking.read_lines(made) == num_lines


def test_figures_by_hand_and_no_target_is_missed():
    result = looking.verdict(FOUND, "<html>")
    assert (result["watch_of_rival"], result["page_bytes"], result["external"], result["missed"]) == (0.5, 6, 0, [])


@pytest.mark.parametrize(
    ("program", "changed", "missed"),
    [
        ("watch", {"seconds": 2.1}, "first screen, s"),
        ("watch", {"peak_bytes": 301e6}, "memory of watch, bytes"),
        ("report", {"peak_bytes": 301e6}, "memory of report, bytes"),
        ("report", {"seconds": 11.0}, "report, s"),
    ],
)
def test_a_missed_target_is_named(program, changed, missed):
    found = FOUND | {program: FOUND[program] | changed}
    assert looking.verdict(found, "")["missed"] == [missed]


@pytest.mark.parametrize(
    ("page", "external"),
    [
        ('<script src="https://cdn.example/bokeh.js"></script>', 1),
        ("<img alt='x' src='//example.org/x.png'>", 1),
        ('<link rel="stylesheet" href="http://example.org/x.css">', 1),
        ('<a href="https://example.org">a page</a> <script>const url = "https://example.org"</script>', 0),
        ('<img src="data:image/png;base64,AAAA">', 0),
    ],
)
def test_what_a_browser_would_fetch_is_found(page, external):
    assert looking.verdict(FOUND, page)["external"] == external


def test_the_last_line_is_json_and_the_exit_code_tells_of_misses(monkeypatch, capsys, tmp_path):
    def write_page(folder, *sizes):
        folder.mkdir()
        (folder / "report.html").write_text("<p>")

    monkeypatch.setattr(looking, "make_run", write_page)
    monkeypatch.setattr(looking, "measure", lambda folder, rounds: FOUND)
    assert looking.main([]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["missed"] == []
    monkeypatch.setattr(looking, "MOST_PAGE_BYTES", 2)
    assert looking.main([]) == 1
