"""`medx convert inspect`, `diff` and `verify` as they are typed: the screen, the file, the exit code."""

import json
import re

import pytest
import torch
from conversion_networks import random_tensors, tiny_model

from megatron_medx.checkpoint.convert import to_megatron
from megatron_medx.checkpoint.reports.diff import diff
from megatron_medx.checkpoint.reports.diff_lines import NUM_SHOWN
from megatron_medx.checkpoint.reports.inspection import inspect
from megatron_medx.checkpoint.running import logits as logits_module
from megatron_medx.cli import main

DOWN_1 = "model.language_model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def pair(one_model, write_hf, tmp_path):
    """A directory and a checkpoint that differs from it in one tensor, as words."""
    tensors = random_tensors(one_model)
    first = write_hf(one_model, tensors)
    tensors[DOWN_1] = tensors[DOWN_1] * 1.5
    to_megatron(write_hf(one_model, tensors, "other"), tmp_path / "root")
    return [str(first), str(tmp_path / "root")]


def typed(capsys, *words):
    """Exit code of `medx convert WORDS`, and the lines on the screen."""
    code = main(["convert", *map(str, words)])
    return code, capsys.readouterr().out.splitlines()


def test_inspect_prints_and_writes_one_report(pair, tmp_path, capsys):
    code, lines = typed(capsys, "inspect", pair[0], "--json", tmp_path / "report.json")
    assert code == 0 and lines[1].endswith(pair[0])
    layered = [line for line in lines if "layers.{0..1}." in line]
    assert layered and not any(line.startswith(DOWN_1) for line in lines)
    assert json.loads((tmp_path / "report.json").read_text()) == inspect(pair[0], with_norms=False)
    _, every = typed(capsys, "inspect", pair[0], "--all")
    assert any(line.startswith(DOWN_1) for line in every)
    count = len(random_tensors(tiny_model()))
    assert sum(line.startswith(("model.", "lm_head.")) for line in every) == count


def test_inspect_counts_norms_when_asked(pair, tmp_path, capsys):
    for words in ((), ("--norms",)):
        code, lines = typed(capsys, "inspect", pair[1], "--all", "--json", tmp_path / "report.json", *words)
        report = json.loads((tmp_path / "report.json").read_text())
        (entry,) = (one for one in report["tensors"] if one["other_names"] == [DOWN_1])
        (line,) = (line for line in lines if line.startswith("decoder.layers.1.mlp.linear_fc2.weight"))
        expected = 1.5 * random_tensors(tiny_model())[DOWN_1].norm().item()
        if words:
            assert entry["norm"] == pytest.approx(expected, rel=1e-6)
            assert any(float(word) == pytest.approx(expected, rel=1e-2) for word in re.findall(r"\d+\.\d+", line))
        else:
            assert entry.get("norm") is None
        assert code == 0 and report["has_optimizer"] is False


def test_diff_exits_1_where_anything_differs(pair, tmp_path, capsys):
    code, lines = typed(capsys, "diff", *pair, "--json", tmp_path / "diff.json")
    assert code == 1 and lines[-1] == "not equal"
    report = json.loads((tmp_path / "diff.json").read_text())
    assert report == diff(*pair) and [one["name"] for one in report["different"]] == [DOWN_1]
    assert any(line.strip().startswith(DOWN_1) for line in lines)
    assert typed(capsys, "diff", pair[0], pair[0])[0] == 0


def test_diff_shows_every_tensor_when_asked(pair, one_model, write_hf, capsys):
    other = write_hf(one_model, random_tensors(one_model, seed=5), "all other")
    short, long = (typed(capsys, "diff", pair[0], other, *words)[1] for words in ((), ("--all",)))
    count = len(random_tensors(one_model))
    assert f"  and {count - NUM_SHOWN} more" in short
    assert sum("model.visual" in line for line in long) > sum("model.visual" in line for line in short)


def test_a_report_that_cannot_be_written_is_told_before_the_work(pair, tmp_path, capsys):
    for command in (["inspect", pair[0]], ["diff", *pair]):
        assert main(["convert", *command, "--json", str(tmp_path / "absent" / "file")]) == 2
        said = capsys.readouterr()
        assert said.out == "" and "needed:" in said.err


def test_verify_says_losses_and_ends_with_json(pair, capsys, monkeypatch):
    outputs = logits_module.Outputs(0.25, (4.5, None))
    monkeypatch.setattr("megatron_medx.checkpoint.verify.compare_outputs", lambda first, second, samples: outputs)
    code, lines = typed(capsys, "verify", *pair)
    result = json.loads(lines[-1])
    assert code == 1 and not result["bit_equal"]
    assert (result["loss_first"], result["loss_second"], result["logits_max_abs_diff"]) == (4.5, None, 0.25)
    assert "loss of the first: 4.500000 nats a token" in lines and "largest difference of logits: 2.50e-01" in lines
    code, lines = typed(capsys, "verify", pair[0], pair[0], "--tensors-only")
    assert code == 0 and json.loads(lines[-1])["logits_note"] == "only tensors were to be compared"


def test_verify_runs_on_the_rows_that_are_asked_for(pair, capsys, monkeypatch):
    """How rows become samples: field by field, from the first of the two; `--rows` needs a number."""
    asked, given = [], []
    row = logits_module.fixed_sample(tiny_model())

    def first_rows(folder, model, processor, number):
        asked.append((str(folder), model, processor, number))
        return [row] * number

    def compare(first, second, samples):
        given.extend(samples)
        return logits_module.Outputs(0.0, (1.0, 1.0))

    monkeypatch.setattr("megatron_medx.data.inspection.first_rows.first_rows", first_rows)
    monkeypatch.setattr("megatron_medx.checkpoint.verify.compare_outputs", compare)
    assert typed(capsys, "verify", pair[1], pair[1], "--data", "chest", "--rows", 2)[0] == 0
    assert [(folder, number) for folder, _, _, number in asked] == [("chest", 2)]
    assert asked[0][1] == tiny_model() and str(asked[0][2]) == f"{pair[1]}/processor"
    assert len(given) == 2 and all(torch.equal(one.tokens_1S, row.tokens_1S) for one in given)
    with pytest.raises(SystemExit):
        main(["convert", "verify", *pair, "--data", "chest", "--rows", "none"])
    assert "found none, needed a number from 1 on" in capsys.readouterr().err
