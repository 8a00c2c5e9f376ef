"""The page of `medx report`: whole, of any run, with nothing in it that a run's text could do."""

import html.parser
import json
import re
import subprocess
import sys

import pytest
from rich_run import HOSTILE, write_rich_run

from megatron_medx.cli import main
from megatron_medx.errors import ConfigError
from megatron_medx.report.page import SECTIONS
from megatron_medx.report.write import write_report
from megatron_medx.run_folder.quantities import DERIVED, RANKS, STEP, VALIDATION


class Elements(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.scripts = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.words += f" {data}"

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    return write_rich_run(root / "child"), write_rich_run(root / "parent", num_steps=80, shift=0.3, seed=7)


@pytest.fixture(scope="module")
def page(folders):
    return Elements(write_report(*folders).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def figures(page):
    return json.loads(page.scripts[0])


def test_every_section_is_there_and_linked(page):
    assert [attrs["id"] for attrs in page.of("section")] == list(SECTIONS)
    assert [attrs["href"] for attrs in page.of("a")] == [f"#{name}" for name in SECTIONS]


def test_the_head_tells_name_state_progress_commit_and_loss(page):
    words = " ".join(page.words.split())
    for text in ("child interrupted", "demo, 4 ranks", "abc123", "step 60 of 80 (75.0%)", "2.744 nats/token", "8.084"):
        assert text in words


def test_text_of_the_run_stays_text(page):
    assert page.words.count(HOSTILE) >= 8
    assert len(page.scripts) == 3
    assert not [attrs for attrs in page.of("img") if not attrs["src"].startswith("data:")]
    assert "<" not in page.scripts[0]
    assert '"$ $x^2$ $"' in page.scripts[0] and '"$$x^2$$"' not in page.scripts[0]  # Bokeh would fetch a typesetter


def test_nothing_is_asked_of_the_network(page):
    assert "default-src 'none'" in page.of("meta")[1]["content"]
    assert not page.of("link") and not page.of("iframe")
    assert not [attrs for attrs in page.of("script") if "src" in attrs]


def test_each_figure_has_its_place(page, figures):
    places = [attrs["id"] for attrs in page.of("div") if attrs.get("class") == "curve"]
    assert sorted(figures["items"][0]["roots"].values()) == sorted(places)
    assert {"curve-loss", "curve-gradient-norm", "curve-learning-rate", "curve-step-time", "curve-ranks"} <= set(places)
    assert {"curve-accuracy", "curve-by-modality-0", "curve-timeline", "curve-mixture"} <= set(places)
    assert "curve-mfu" not in places and "This run has no numbers of: MFU." in page.words


def test_every_quantity_has_a_definition_and_every_question_mark_leads_to_one(page):
    defined = {attrs["id"] for attrs in page.of("div") if "popover" in attrs}
    assert len(defined) == sum(map(len, (STEP, RANKS, VALIDATION, DERIVED)))
    asked = {attrs["popovertarget"] for attrs in page.of("button")}
    assert asked <= defined and len(asked) > 30
    assert STEP["loss"].meaning in page.words and VALIDATION["bits_per_byte"].meaning in page.words


def test_the_parent_is_dashed_behind_and_its_settings_beside(page, figures):
    texts = json.dumps(figures)
    assert '"loss (parent)"' in texts and '"line_dash": [6]' in texts
    assert "run.seed" in page.words and "parent parent" in page.words
    assert "1234" in page.words


def test_without_a_parent_the_recipe_is_compared_with(folders, tmp_path):
    page = Elements(write_report(folders[0], out=tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "recipe demo as shipped" in page.words and "data.validation_sets" in page.words
    assert "(parent)" not in page.scripts[0]


def test_data_that_is_there_is_told_and_data_that_is_gone_said(page):
    words = " ".join(page.words.split())
    assert "CC-BY-4.0 60" in words and "3: image cannot be read 3" in words
    assert re.search(r"gone/manifest.json cannot be read from here", words)
    assert "corpus 100.00 100.00 60,000" in words


def test_profiles_bad_steps_events_and_versions_are_told(page):
    words = " ".join(page.words.split())
    for text in ("attention 40 %", "spike", "a, b, c and 1 more", "saved at step 60 on SIGUSR1", "torch 2.15.0"):
        assert text in words


def test_the_same_files_give_the_same_page(folders, tmp_path):
    """But for the date; in processes of their own, as `medx` is."""
    texts = []
    for number in range(2):
        out = tmp_path / f"{number}.html"
        command = [sys.executable, "-m", "megatron_medx.cli", "report", str(folders[0]), "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True)
        texts.append(re.sub(r"page made [^<]*", "", out.read_text(encoding="utf-8")))
    assert texts[0] == texts[1]


def test_a_run_of_an_older_version(tmp_path, monkeypatch):
    run = write_rich_run(tmp_path / "old")
    for name in ("ranks.jsonl", "events.jsonl", "generations.jsonl", "bad_steps.jsonl", "data/plan.json"):
        (run / name).unlink()
    keys = ("step", "loss", "grad_norm", "lr", "tokens", "step_time_s", "data_wait_s", "model_tflops_per_s")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    old = [json.dumps({key: line[key] for key in keys}) for line in lines]
    (run / "metrics.jsonl").write_text("\n".join(old) + "\n")
    (run / "validation.jsonl").write_text('{"step": 30, "loss": 3.5, "rows": 8}\n')
    page = Elements(write_report(run).read_text(encoding="utf-8"))
    words = " ".join(page.words.split())
    for text in ("events.jsonl is not there", "ranks.jsonl is not there", "does not tell what was planned"):
        assert text in words
    assert "validation 30 3.5" in words and "No answers were sampled" in words


def test_a_run_without_steps(tmp_path):
    run = write_rich_run(tmp_path / "new")
    for path in run.glob("*.jsonl"):
        path.unlink()
    words = Elements(write_report(run).read_text(encoding="utf-8")).words
    assert "No step is done yet" in words and "Nothing was validated" in words


def test_a_run_that_a_job_has_only_just_taken(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"time": "2026-11-23T06:00:00+00:00", "event": "job_started", "job": 7}\n')
    words = Elements(write_report(tmp_path).read_text(encoding="utf-8")).words
    assert "no recipe yet" in words and "The run has no run.yaml yet" in words


@pytest.mark.parametrize("name", ["metrics", "ranks", "validation", "generations", "events", "bad_steps"])
def test_lines_that_are_cut_off_or_strange_are_left_out(tmp_path, name):
    run = write_rich_run(tmp_path / "cut", num_steps=20)
    path = run / f"{name}.jsonl"
    strange = '{"step": null}\n[1]\n{"step": 21, "loss": "high", "by_modality": [], "busy_s": [null], "event": "new"}\n'
    path.write_text(path.read_text() + strange + '{"step": 22, "lo')
    assert "Curves" in Elements(write_report(run).read_text(encoding="utf-8")).words


@pytest.mark.parametrize("which", ["run", "parent"])
def test_a_folder_that_is_no_run_is_refused(folders, tmp_path, which, capsys):
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "empty")] if which == "run" else [str(folders[0]), "--against", str(tmp_path / "empty")]
    assert main(["report", *words, "--out", str(tmp_path / "page.html")]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_no_folder_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_leaves_nothing(folders, tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(ConfigError, match=r"page.html cannot be written[\s\S]*--out FILE"):
        write_report(folders[0], out=tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_command_says_where_the_page_is(folders, tmp_path, capsys):
    assert main(["report", str(folders[0]), "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert re.search(r"new/page.html \(\d\.\d MB\)", capsys.readouterr().out)
