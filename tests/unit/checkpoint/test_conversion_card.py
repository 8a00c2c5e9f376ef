"""README.md of an export: valid for the hub, true to the run's files, and honest about what is not known."""

import argparse
import hashlib
import io
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from conversion_networks import random_tensors, tiny_model, write_hf
from huggingface_hub import ModelCard

from megatron_medx.checkpoint.average import average
from megatron_medx.checkpoint.card import card_facts
from megatron_medx.checkpoint.card.card_stages import place_name, without_folders
from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.megatron_files import torch_dist
from megatron_medx.config.files import read_run_yaml, write_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.data import index
from megatron_medx.data.builder import report
from megatron_medx.data.plan import prepare
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.step import FLOPS, IMAGES, LOSS, SAMPLES_CRC, TOKENS

PROVENANCE = {
    "command": "medx train pretrain_x data.path=/mnt/someone/mixture.yaml",
    "date": "2026-11-01T02:03:04+00:00",
    "commit": "abc123 with uncommitted changes",
    "versions": {"torch": "9.8.7", "megatron-core": "0.0.1"},
}
LICENSED = "---\nlicense: apache-2.0\n---\n# A base\n"


def data_folder(folder, *, sha256, licenses, languages):
    """What the card reads of a data folder."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"index_sha256": sha256}))
    stated = {"license": licenses, "language": languages, "modality": {"CT": 3, "text": 4}}
    (folder / "report.json").write_text(json.dumps(stated))
    return folder


def plan_of(folders, weights):
    """plan.json of a run on data folders: 300 tokens in the first, 100 in the second."""
    pieces, counts = {}, {}
    for number, (folder, weight) in enumerate(zip(folders, weights, strict=True)):
        pieces[f"source {number}: index SHA-256"] = f"sha of {folder.name}"
        pieces[f"source {number}: weight"] = weight
        pieces[f"source {number}: max_epochs"] = 2.5 if number else None
        counts[str(folder)] = {"num_samples": 7, "num_tokens": 100 if number else 300}
    return {"fingerprint": "f", "pieces": pieces, "counts": counts}


class Runs:
    """Run folders below tmp_path, made of converted random weights."""

    def __init__(self, folder, model, monkeypatch):
        self.folder, self.model, self._monkeypatch = folder, model, monkeypatch

    def base(self, card=None, name="base"):
        """A Hugging Face directory, with a card if one is given."""
        folder = self.folder / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_hf(folder, self.model, random_tensors(self.model))
        if card:
            (folder / "README.md").write_text(card)
        return folder

    def run(self, name, start_from="", step=7, metrics=True, license=""):
        """A run folder with one checkpoint; its steps have 10, 20, 30, ... tokens and 1, 2, 3, ... images."""
        arguments = argparse.Namespace(tensor_model_parallel_size=2, consumed_train_samples=4321)
        if not (self.folder / "weights").exists():
            write_hf(self.folder / "weights", self.model, random_tensors(self.model))
        root = self.folder / name / "checkpoints"
        with self._monkeypatch.context() as patched:
            patched.setattr(torch_dist, "COMMON_STATE", {"args": arguments})
            to_megatron(self.folder / "weights", root)
        (root / "release").rename(root / f"iter_{step:07d}")
        (root / "latest_checkpointed_iteration.txt").write_text(str(step))
        config = RunConfig(model=self.model)
        config.run.recipe, config.run.folder, config.run.license = f"recipe_{name}", str(root.parent), license
        config.training.steps, config.checkpoint.start_from = 9, str(start_from)
        config.optimizer.vision_lr = 3e-6
        write_run_yaml(config, root / "run.yaml", PROVENANCE)
        if metrics:
            lines = [{"step": n, "loss": 9 - n / 4, "tokens": 10 * n, "images": n} for n in range(1, 10)]
            (root.parent / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return root.parent


@pytest.fixture
def runs(tmp_path, one_model, monkeypatch):
    return Runs(tmp_path, one_model, monkeypatch)


def card_of(folder):
    """The card as the hub's own library reads it: metadata and text."""
    card = ModelCard.load(folder / "README.md")
    return card.data.to_dict(), card.text


def exported(source, out, **options):
    to_hf(source, out, **options)
    return card_of(out)


def test_the_front_matter_is_what_the_hub_expects(runs, tmp_path):
    base = runs.base(LICENSED, "models--Qwen--Qwen3-VL-9B/snapshots/0123")
    first = runs.run("align", base)
    last = runs.run("pretrain", first / "checkpoints" / "iter_0000007")
    folder = data_folder(tmp_path / "d" / "ct", sha256="sha of ct", licenses={"MIT": 7}, languages={"en": 5, "n/a": 2})
    (last / "checkpoints" / "plan.json").write_text(json.dumps(plan_of([folder], [None])))
    data, text = exported(last, tmp_path / "out")
    assert data == {
        "base_model": ["Qwen/Qwen3-VL-9B"],
        "language": ["en"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "image-text-to-text",
        "tags": ["megatron-medx"],
    }
    assert "# recipe_pretrain, step 7\n" in text
    assert "1. align, step 7 of 9 (recipe recipe_align)\n2. Qwen/Qwen3-VL-9B (a Hugging Face directory)\n" in text
    assert "repeats what Qwen/Qwen3-VL-9B states" in text
    assert "## Not known" not in text


def test_the_text_has_the_runs_numbers(runs, tmp_path):
    run = runs.run("ours")
    folders = [
        data_folder(tmp_path / name, sha256=f"sha of {name}", licenses={licensed: 7}, languages={"not stated": 7})
        for name, licensed in (("reports", "CC-BY-4.0"), ("replay", "MIT"))
    ]
    weights = [[[0, 0.25], [1000, 0.5]], [[0, 0.75]]]
    (run / "checkpoints" / "plan.json").write_text(json.dumps(plan_of(folders, weights)))
    lines = [{"step": 3, "loss": 5.5}, {"step": 6, "loss": 4.25}, {"step": 6, "set": "b", "loss": 9.0}]
    lines += [{"step": 9, "loss": 1.0}]
    (run / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data, text = exported(run, tmp_path / "out")
    assert "language" not in data and "base_model" not in data
    for line in (
        "| recipe | recipe_ours, in the run folder ours |",
        "| step | 7 of 9 |",
        "| rows seen | 4,321 of 4,096 tokens at most |",
        "| tokens seen | 280, text and images, padding not counted |",  # 10 + 20 + ... + 70
        "| images seen | 28 |",
        "| training loss | 7.2500 nats a token, at step 7 |",
        "| validation loss | 4.2500 nats a token, at step 6 |",
        "| learning rate | cosine, peak 0.0001 (vision 3e-06), end 0.0; 0 steps of warm-up |",
        "| grid | tensor 2 |",
        "| reports | 25.0% at 0, 50.0% at 1,000 tokens | 7 | 300 | no limit | `sha of reports` |",
        "| replay | 75.0% | 7 | 100 | 2.5 | `sha of replay` |",
        "- license: CC-BY-4.0 7",
        "- license: MIT 7",
        "| commit | abc123 with uncommitted changes |",
        "| versions | torch 9.8.7, megatron-core 0.0.1 |",
        "| command | `medx train pretrain_x data.path=mixture.yaml` |",
        "1. seeded random weights",
        "  recipe: recipe_ours",
    ):
        assert f"{line}\n" in text, line
    assert str(tmp_path) not in text and "/mnt/" not in text


def test_the_configuration_in_the_card_is_a_run_yaml(runs, tmp_path):
    run = runs.run("ours", "/mnt/models/Qwen3-VL")
    _, text = exported(run, tmp_path / "out")
    (tmp_path / "run.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    expected = read_run_yaml(run / "checkpoints" / "run.yaml")
    expected.run.folder, expected.checkpoint.start_from = "ours", "Qwen3-VL"
    assert read_run_yaml(tmp_path / "run.yaml") == expected
    assert "data.path=DATA checkpoint.start_from=WEIGHTS`" in text


def test_shares_without_weights_follow_the_tokens(runs, tmp_path):
    run = runs.run("ours")
    folders = [data_folder(tmp_path / n, sha256=f"sha of {n}", licenses={}, languages={}) for n in ("a", "b")]
    (run / "checkpoints" / "plan.json").write_text(json.dumps(plan_of(folders, [None, None])))
    _, text = exported(run, tmp_path / "out")
    assert "| a | 75.0%, in proportion to its tokens |" in text and "| b | 25.0%, in proportion" in text


def test_steps_are_read_as_the_monitor_writes_them(runs, tmp_path):
    run = runs.run("ours", metrics=False)
    config = RunConfig(model=runs.model)
    config.training.steps = 9
    monitor = StepMonitor(config, run, io.StringIO())
    for step in range(1, 10):
        monitor.step_time_s = 1.0
        values = {LOSS: 2.5, TOKENS: 11.0, IMAGES: 3.0, SAMPLES_CRC: 1.0, FLOPS: 1.0}
        monitor.step(step, {name: torch.tensor(value) for name, value in values.items()}, 1.0, skipped=step == 2)
    monitor.close()
    _, text = exported(run, tmp_path / "out")
    assert "| tokens seen | 77," in text and "| images seen | 21 |" in text
    assert "| skipped updates | 1 |" in text and "2.5000 nats a token, at step 7" in text


def test_a_broken_log_is_stated_and_the_export_goes_on(runs, tmp_path, caplog):
    run = runs.run("ours")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2], lines[4] = lines[2][:20], '{"step": 5, "loss": 1.0, "tokens": null, "images": 3}'
    lines[6] = lines[6].replace("7.25", '"low"')
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n\0\xff")
    (run / "validation.jsonl").write_text('{"step": "two"}\n{"step": 2, "loss": null}\n')
    (run / "checkpoints" / "plan.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        _, text = exported(run, tmp_path / "out")
    unknown = text[text.index("## Not known") :]
    assert "- 3 of 10 lines of metrics.jsonl are not readable\n" in unknown
    assert "- metrics.jsonl has 5 of 7 steps: its sums are of these alone\n" in unknown
    assert "- which data were used: plan.json beside the checkpoints is not readable (KeyError: 'pieces')" in unknown
    assert "- 1 of 2 lines of validation.jsonl are not readable\n" in unknown
    assert "| tokens seen | 200," in text  # 280 without steps 3 and 5
    assert "| training loss |" not in text and "| validation loss | not finite, at step 2 |\n" in text
    assert "3 of 10 lines of metrics.jsonl are not readable" in caplog.text


def test_a_root_without_its_run_folder_is_exported(runs, tmp_path):
    run = runs.run("ours")
    (run / "checkpoints").rename(tmp_path / "copied")
    _, text = exported(tmp_path / "copied", tmp_path / "out")
    assert "# recipe_ours, step 7\n" in text and "in the run folder copied |" in text
    assert "- no metrics.jsonl beside the checkpoints: tokens and images seen are not known\n" in text
    assert "tokens seen |" not in text


def test_relative_paths_start_where_the_run_was_launched(runs, tmp_path, monkeypatch):
    """Not where the export runs; a root that was moved is looked for from there."""
    monkeypatch.chdir(tmp_path)
    data_folder(tmp_path / "data" / "ct", sha256="sha of ct", licenses={"MIT": 7}, languages={"en": 7})
    run = runs.run("ours", runs.base(LICENSED).name)
    path = run / "checkpoints" / "run.yaml"
    path.write_text(path.read_text().replace(f"folder: {run}", "folder: ours"))
    (run / "checkpoints" / "plan.json").write_text(json.dumps(plan_of([Path("data/ct")], [None])))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data, text = exported(run, tmp_path / "out")
    assert data["license"] == "apache-2.0" and data["language"] == ["en"] and "## Not known" not in text
    run.rename(tmp_path / "renamed")
    data, text = exported(tmp_path / "renamed", tmp_path / "out2")
    assert data["license"] == "unknown" and "- base, which an earlier stage left, is not where it was" in text


def test_data_that_were_built_anew_or_are_gone_lend_no_licenses(runs, tmp_path):
    run = runs.run("ours")
    folder = data_folder(tmp_path / "ct", sha256="another", licenses={"MIT": 7}, languages={"en": 7})
    (run / "checkpoints" / "plan.json").write_text(json.dumps(plan_of([folder, tmp_path / "gone"], [None, None])))
    data, text = exported(run, tmp_path / "out")
    assert "MIT" not in text and "language" not in data
    assert "- licenses and languages of ct: the folder was built anew since\n" in text
    assert "- licenses and languages of gone: its report is not readable (No such file or directory)\n" in text


def test_counts_that_are_no_numbers_are_stated(runs, tmp_path):
    run = runs.run("ours")
    folder = data_folder(tmp_path / "ct", sha256="sha of ct", licenses={"MIT": "many"}, languages={})
    plan = plan_of([folder, tmp_path / "b"], [None, None])
    (run / "checkpoints" / "plan.json").write_text(json.dumps(plan))
    _, text = exported(run, tmp_path / "out")
    assert "- licenses and languages of ct: its report is not readable (ValueError: invalid literal" in text
    plan["counts"][str(folder)]["num_samples"] = None
    (run / "checkpoints" / "plan.json").write_text(json.dumps(plan))
    _, text = exported(run, tmp_path / "out2")
    assert "- which data were used: plan.json beside the checkpoints is not readable (TypeError" in text


def test_a_run_file_that_cannot_be_read_leaves_a_card_of_the_network(runs, tmp_path):
    run = runs.run("ours")
    path = run / "checkpoints" / "run.yaml"
    path.write_text(path.read_text().replace("recipe:", "recipee:"))
    data, text = exported(run, tmp_path / "out")
    assert data["license"] == "unknown" and "# ours, step 7\n" in text and "## Training" not in text
    assert "- run.yaml of ours is not readable: ConfigError: found: unknown key run.recipee" in text


def test_a_damaged_state_leaves_the_grid_out(runs, tmp_path):
    run = runs.run("ours")
    (run / "checkpoints" / "iter_0000007" / "common.pt").write_bytes(b"no pickle")
    _, text = exported(run, tmp_path / "out")
    assert "- grid and rows: the common state in " in text
    assert "| grid |" not in text and "| rows seen |" not in text and str(tmp_path) not in text


def test_a_converted_checkpoint_says_what_it_was_converted_from(runs, tmp_path):
    base = runs.base("---\nlicense: other\nlicense_name: house\nbase_model: org/parent\n---\n", "our-base")
    to_megatron(base, tmp_path / "root")
    data, text = exported(tmp_path / "root", tmp_path / "out")
    assert data["license"] == "other" and data["license_name"] == "house" and data["base_model"] == ["org/parent"]
    assert "# root\n" in text and "The conversion that wrote root:" in text and "## Training" not in text
    assert "1. our-base (a Hugging Face directory)\n" in text
    assert "| command | `medx convert to-megatron our-base root` |\n" in text


@pytest.mark.parametrize(
    ("card", "note"),
    [
        (None, None),
        ("---\n[1, 2\n---\n", "the card of base is not readable: ParserError"),
        ("---\n- 1\n---\n", "the card of base is not readable: ValueError: repo card metadata block should be a dict"),
        ("---\nbase_model: not a name\nlicense: [mit]\n---\n", None),
    ],
)
def test_a_base_that_states_no_license_leaves_it_unknown(runs, tmp_path, card, note):
    data, text = exported(runs.run("ours", runs.base(card)), tmp_path / "out")
    assert data["license"] == "unknown" and "base_model" not in data
    assert "None is stated by what the weights come from" in text
    assert (f"- {note}" in text) if note else ("the card of base" not in text)


def test_the_license_that_a_run_names_goes_before_that_of_its_base(runs, tmp_path):
    data, text = exported(runs.run("ours", runs.base(LICENSED), license="cc-by-nc-4.0"), tmp_path / "out")
    assert data["license"] == "cc-by-nc-4.0" and "repeats what run.license states" in text


def test_a_start_that_is_gone_and_one_that_turns_in_a_circle(runs, tmp_path):
    gone = tmp_path / "align" / "checkpoints" / "iter_0000100"
    _, text = exported(runs.run("ours", gone), tmp_path / "out")
    assert "1. align, step 100\n" in text and "- align, step 100, which an earlier stage left, is not where" in text
    ring = runs.run("ring", tmp_path / "ring")
    _, text = exported(ring, tmp_path / "out2")
    assert "1. ring\n" in text and "- ring names itself as what it started from\n" in text


def test_a_part_is_no_model(runs, tmp_path):
    data, text = exported(runs.run("ours"), tmp_path / "out", only="merger")
    assert "pipeline_tag" not in data
    assert "The **merger** part alone" in text and "It cannot be loaded as a model" in text


def test_experts_are_tagged(tmp_path, monkeypatch):
    runs = Runs(tmp_path, tiny_model(experts=(5, 2)), monkeypatch)
    data, text = exported(runs.run("ours"), tmp_path / "out", dtype="bf16")
    assert data["tags"] == ["megatron-medx", "mixture-of-experts"]
    assert "5 experts of width 12, 2 for each token |" in text and "network in bfloat16" in text


def test_a_mean_names_all_it_was_made_of(runs, tmp_path):
    base, other = runs.base(LICENSED), runs.base("---\nlicense: mit\n---\n", "other")
    a, b = runs.run("a", base), runs.run("b", base, step=8)
    average(tmp_path / "out", [a, b], weights=[0.25, 0.75], hf=True)
    data, text = card_of(tmp_path / "out")
    assert data["license"] == "apache-2.0"
    assert "# Mean of 2 checkpoints: recipe_a, step 7 to recipe_b, step 8\n" in text
    assert "| recipe_a, step 7 | 0.25 | a |\n| recipe_b, step 8 | 0.75 | b |\n" in text
    assert "The newest launch of the run a:\n" in text and "The newest launch of the run b:\n" in text
    assert "- recipe_a, step 7: which data were used: plan.json beside the checkpoints is not readable" in text
    assert "## Training" not in text
    average(tmp_path / "out2", [a, runs.run("c", other)], hf=True)
    assert card_of(tmp_path / "out2")[0]["license"] == "unknown"  # the two bases state different ones
    average(tmp_path / "root", [a, runs.run("d")])
    data, text = exported(tmp_path / "root", tmp_path / "out3")
    assert data["license"] == "unknown" and "1. mean of a, step 7 of 9 (recipe recipe_a); d, step 7 of 9" in text


def test_a_mean_of_one_run_describes_its_newest_step(runs, tmp_path):
    run = runs.run("ours")
    (run / "checkpoints" / "iter_0000005").symlink_to(run / "checkpoints" / "iter_0000007")
    average(tmp_path / "out", [run / "checkpoints" / f"iter_000000{step}" for step in (7, 5)], hf=True)
    _, text = card_of(tmp_path / "out")
    assert "Of the newest of these checkpoints, recipe_ours, step 7:" in text and "| tokens seen | 280," in text


def test_folders_are_cut_off_absolute_paths_alone():
    command = ["/usr/x/medx", "data=runs/a", "from=/mnt/my/b.yaml,/c", "https://hub.co/x", "'/d e/f'", "a/b", "/g"]
    assert without_folders(command) == [
        *("medx", "data=runs/a", "from=b.yaml,c", "https://hub.co/x", "'d e/f'", "a/b", "g"),
    ]
    assert without_folders({"a": [{"b": "/x/y"}], "n": 3}) == {"a": [{"b": "y"}], "n": 3}


def test_places_have_short_names(tmp_path):
    assert place_name(tmp_path / "r" / "checkpoints" / "iter_0001200") == "r, step 1,200"
    assert place_name(tmp_path / "root" / "release") == "root"
    assert place_name(tmp_path / "r" / "checkpoints") == "r"


def test_files_are_called_as_those_who_write_them_call_them():
    assert card_facts.PLAN_FILE == prepare.PLAN_FILE
    assert card_facts.MANIFEST_FILE == index.MANIFEST_FILE
    assert card_facts.REPORT_FILE == report.REPORT_FILE
    assert {"license", "language", "modality"} <= set(report.COUNTED_NOTES)


def test_the_card_changes_no_other_file(runs, tmp_path):
    """A second export differs in its card alone, by the date."""
    run = runs.run("ours")
    for name in ("a", "b"):
        to_hf(run, tmp_path / name)
    a, b = ({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / n).iterdir()} for n in ("a", "b"))
    assert {name for name in a if a[name] != b[name]} <= {"README.md"} and set(a) == set(b)
