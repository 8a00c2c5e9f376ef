"""The `medx` command: what reaches the implementations, exit codes, and that dry runs never load torch."""

import json
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_medx.cli import main
from megatron_medx.config.files import write_run_yaml
from megatron_medx.errors import CheckpointError
from megatron_medx.recipes import RECIPES, get_recipe


def stand_in(monkeypatch, module: str, **functions) -> list:
    """Put functions that record their arguments in place of a module; return the record."""
    calls = []

    def recorder(name, result):
        def call(*args, **options):
            calls.append((name, *args, *([options] if options else [])))
            if isinstance(result, Exception):
                raise result
            return result

        return call

    fake = types.ModuleType(module)
    for name, result in functions.items():
        setattr(fake, name, recorder(name, result))
    monkeypatch.setitem(sys.modules, module, fake)
    return calls


@pytest.fixture
def launched(monkeypatch):
    from megatron_medx.config import checks

    monkeypatch.setattr(checks, "check_files", lambda config, resume: None)
    monkeypatch.setattr("megatron_medx.training.interruption.block_signals", lambda: None)
    return stand_in(monkeypatch, "megatron_medx.training.launch", launch=0)


def test_dry_run_describes_and_starts_nothing(launched, capsys):
    assert main(["train", "pretrain_8b", "--dry-run", "training.steps=700"]) == 0
    out = capsys.readouterr().out
    assert "700 steps x" in out
    assert out.splitlines()[-1] == "all checks passed; nothing was started"
    assert launched == []


@pytest.mark.parametrize(
    "words",
    [
        ["train", "demo", "training.steps=5", "parallel.pipeline=2", "--nproc", "4", "--resume"],
        ["train", "demo", "--nproc", "4", "training.steps=5", "--resume", "parallel.pipeline=2"],
        ["train", "--resume", "--nproc=4", "demo", "training.steps=5", "parallel.pipeline=2"],
    ],
)
def test_train_launches_the_checked_configuration(launched, words):
    assert main(words) == 0
    ((_, config, resume, auto_resume),) = launched
    assert (config.training.steps, config.parallel.pipeline, config.parallel.world_size) == (5, 2, 4)
    assert resume is True and auto_resume is False


def test_train_without_nproc_takes_the_recipes_ranks(launched):
    assert main(["train", "demo"]) == 0
    ((_, config, *going_on),) = launched
    assert (config, going_on) == (get_recipe("demo"), [False, False])


def test_train_goes_on_where_something_is_saved_and_not_in_two_ways(launched, capsys):
    assert main(["train", "demo", "--auto-resume"]) == 0
    assert launched[0][2:] == (False, True)
    with pytest.raises(SystemExit):
        main(["train", "demo", "--auto-resume", "--resume"])
    assert "not allowed with" in capsys.readouterr().err


def test_under_srun_one_task_complains(launched, capsys, monkeypatch):
    for task, said in (("1", ""), ("0", "learning_rate")):
        monkeypatch.setenv("SLURM_PROCID", task)
        assert main(["train", "demo", "optimizer.learning_rate=1"]) == 2
        complaint = capsys.readouterr().err
        assert said in complaint and bool(said) == bool(complaint)
    assert not launched


def test_train_describes_before_it_starts_and_under_srun_once(launched, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert main(["train", "demo"]) == 0
    assert "world 2 = tensor 2" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert main(["train", "demo"]) == 0
    assert capsys.readouterr().out == ""
    assert len(launched) == 2


def test_train_repeats_a_run_yaml(launched, tmp_path):
    config = get_recipe("demo")
    config.training.steps = 17
    write_run_yaml(config, tmp_path / "run.yaml", {})
    assert main(["train", str(tmp_path / "run.yaml"), "run.seed=2"]) == 0
    config.run.seed = 2
    assert launched[0][1] == config


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "demo", "paralel.tensor=2"], "did you mean parallel.tensor?"),
        (["train", "demo", "--dry-run", "paralel.tensor=2"], "did you mean parallel.tensor?"),
        (["train", "dmeo"], "did you mean demo?"),
        (["train", "xyz"], "see `medx recipes`"),
        (["train", "training.steps=5"], "write for instance medx train demo training.steps=5"),
        (["train", "nowhere/run.yaml"], "No such file"),
        (["train", "demo", "--nproc", "3"], "parallel.world_size 3"),
        (["train", "demo", "--nproc", "0"], "parallel.world_size is 0"),
        (["train", "demo", "data.path=/nowhere"], "no /nowhere/manifest.json"),
        (["generate", "/nowhere", "--question", "?"], "no /nowhere/config.json"),
    ],
)
def test_what_the_user_can_mend_ends_with_2_and_without_traceback(words, part, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert part in err
    assert err.startswith("found:") and "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [[], ["fly"], ["train"], ["train", "demo", "--bogus"], ["train", "demo", "--nproc", "x"], ["doctor", "a=b"]],
)
def test_usage_errors_end_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: medx" in capsys.readouterr().err


def test_convert_passes_paths_and_options(monkeypatch):
    calls = stand_in(monkeypatch, "megatron_medx.checkpoint.convert", to_hf=None, to_megatron=None)
    assert main(["convert", "to-hf", "ckpt", "out"]) == 0
    assert main(["convert", "to-megatron", "hf", "out", "--overwrite"]) == 0
    words = ["convert", "to-hf", "ckpt", "out", "--dtype", "bf16", "--shard-size", "50MB", "--workers", "3"]
    assert main(words) == 0
    engine = {"overwrite": False, "shard_size_bytes": 5_000_000_000, "num_workers": 1}
    whole = engine | {"dtype": "keep", "only": None}
    assert calls == [
        ("to_hf", Path("ckpt"), Path("out"), whole),
        (
            "to_megatron",
            Path("hf"),
            Path("out"),
            engine | {"overwrite": True, "vision_from": None, "dtype": "keep", "add_tokens": None},
        ),
        (
            "to_hf",
            Path("ckpt"),
            Path("out"),
            whole | {"dtype": "bf16", "shard_size_bytes": 50_000_000, "num_workers": 3},
        ),
    ]


def test_a_shard_size_without_a_unit_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["convert", "to-hf", "ckpt", "out", "--shard-size", "lots"])
    assert caught.value.code == 2
    assert "needed a size such as 50MB" in capsys.readouterr().err


@pytest.mark.parametrize(("bit_equal", "code"), [(True, 0), (False, 1)])
def test_verify_ends_with_a_line_of_json(monkeypatch, capsys, bit_equal, code):
    worst = [] if bit_equal else [{"name": "a", "megatron_name": "b", "max_abs_diff": 0.5}]
    result = {"bit_equal": bit_equal, "logits_max_abs_diff": 0.0, "num_tensors": 3, "worst": worst}
    result |= {"num_different": len(worst), "logits_note": "", "first_difference": worst[0] if worst else None}
    stand_in(monkeypatch, "megatron_medx.checkpoint.verify", verify=result, hash_table=None)
    assert main(["convert", "verify", "hf", "ckpt"]) == code
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


def test_errors_of_an_implementation_are_printed_too(monkeypatch, capsys):
    error = CheckpointError("no model.norm.weight", "every tensor", "export again")
    stand_in(monkeypatch, "megatron_medx.checkpoint.convert", to_megatron=error)
    assert main(["convert", "to-megatron", "hf", "out"]) == 2
    assert "do:     export again" in capsys.readouterr().err


def test_generate_prints_the_answer(monkeypatch, capsys):
    asked = []
    assistant = SimpleNamespace(ask=lambda *words: asked.append(words) or "CT")
    monkeypatch.setattr("megatron_medx.generate.Assistant.load", lambda folder: assistant)
    assert main(["generate", "hf", "--image", "a.dcm", "--image", "b.png", "--question", "Which?"]) == 0
    assert asked == [([Path("a.dcm"), Path("b.png")], "Which?", 64)]
    assert capsys.readouterr().out == "CT\n"


def test_data_schema_is_a_json_schema(capsys):
    assert main(["data", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_data_demo(monkeypatch):
    calls = stand_in(monkeypatch, "megatron_medx.data.demo.build", build_demo=None)
    assert main(["data", "demo", "out"]) == 0
    assert calls == [("build_demo", Path("out"))]


def test_recipes_are_listed(capsys):
    assert main(["recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)


def test_a_dry_run_loads_neither_torch_nor_megatron_nor_transformers():
    command = [sys.executable, "-X", "importtime", "-m", "megatron_medx.cli", "train", "pretrain_32b", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "megatron_medx" in loaded
    assert not loaded & {"torch", "megatron", "transformers", "numpy"}
    assert "all checks passed" in done.stdout


def test_convert_average_and_two_parents_pass_their_options(monkeypatch):
    calls = stand_in(monkeypatch, "megatron_medx.checkpoint.average", average=None)
    words = ["convert", "average", "out", "a", "b", "--weights", "0.25,0.75", "--base", "c", "--scale", "0.5", "--hf"]
    assert main(words) == 0
    [(name, *places, options)] = calls
    assert (name, places) == ("average", [Path("out"), [Path("a"), Path("b")]])
    assert (options["weights"], options["base"], options["scale"]) == ([0.25, 0.75], Path("c"), 0.5) and options["hf"]
    calls = stand_in(monkeypatch, "megatron_medx.checkpoint.convert", to_hf=None, to_megatron=None)
    assert main(["convert", "to-megatron", "qwen3", "out", "--vision-from", "vl"]) == 0
    assert main(["convert", "to-hf", "ckpt", "out", "--only", "vision"]) == 0
    assert calls[0][-1]["vision_from"] == Path("vl") and calls[1][-1]["only"] == "vision"
