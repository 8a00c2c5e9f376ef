"""The benchmark of planning: its last line and its exit code."""

import json

import numpy as np

from benchmarks import plan


def run(capsys):
    code = plan.main(["--samples", "3000", "30000"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_small_sizes_reach_the_targets(capsys):
    code, summary = run(capsys)
    assert code == 0 and summary["reached"] is True
    assert [row["samples"] for row in summary["sizes"]] == [3000, 30000]
    for row in summary["sizes"]:
        assert 0 < row["seconds"] < 5 and 10e6 < row["peak_bytes"] < 1e9
        assert 0 <= row["waste"] < 0.02 and 1 <= row["rows_over_fewest"] < 1.02
        assert row["thinned"] > 0


def test_a_missed_target_is_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr(plan, "MOST_BYTES", 1000)
    code, summary = run(capsys)
    assert code == 1 and summary["reached"] is False


def test_samples_are_skewed_and_repeatable():
    samples = plan.skewed_samples(0, 20_000)
    assert samples.equals(plan.skewed_samples(0, 20_000)) and not samples.equals(plan.skewed_samples(20_000, 20_000))
    num_images = samples.column("image_widths").value_lengths().to_numpy()
    text_tokens = samples.column("text_tokens").to_numpy() - 3 * num_images
    assert 0.38 < np.mean(num_images > 0) < 0.42 and num_images.max() > 100
    assert text_tokens.min() >= 8 and text_tokens.max() > 10 * np.median(text_tokens)
