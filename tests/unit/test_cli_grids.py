"""The number of ranks picks the grid that a recipe ships, unless the run has one: on the command line and in jobs."""

from pathlib import Path

import pytest

from megatron_medx.cli import main
from megatron_medx.cli_arguments import configured
from megatron_medx.config.files import write_run_yaml
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.recipes import get_recipe

NAME = "pretrain_8b"


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Data that look whole, in a folder to work in whose disk counts as large enough."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("megatron_medx.job.begin.check_files", lambda config, resume: None)
    for name in ("SLURM_JOB_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "data" / "processor").mkdir(parents=True)
    (tmp_path / "data" / "manifest.json").write_text("{}")
    return tmp_path / "data"


def run_on(gpus: int, folder: Path, *overrides: str):
    """A run of that many ranks in a folder, as its last launch had it."""
    config = apply_overrides(get_recipe(NAME, gpus), [f"run.folder={folder}", *overrides])
    folder.mkdir(parents=True)
    write_run_yaml(config, folder / "run.yaml", {})
    return config


@pytest.mark.parametrize("gpus", [8, 256, 1024])
def test_nproc_picks_the_shipped_grid_and_says_so(gpus, capsys):
    assert main(["train", NAME, "--nproc", str(gpus), "--dry-run"]) == 0
    parallel, lines = get_recipe(NAME, gpus).parallel, capsys.readouterr().out.splitlines()
    assert lines[0] == f"the grid is as {NAME} ships it for {gpus} GPUs"
    assert f"world {gpus} = tensor {parallel.tensor} " in lines[2]


def test_what_the_grid_recomputes_comes_with_it_and_can_be_overridden():
    assert get_recipe(NAME).training.recompute_vision == "full"
    config, _ = configured(NAME, [], 8)
    assert config.training == get_recipe(NAME, 8).training and config.training.recompute_vision == "none"
    config, said = configured(NAME, ["training.recompute_vision=none", "training.steps=700"], 16)
    assert said and config.parallel == get_recipe(NAME, 16).parallel
    assert (config.training.recompute_vision, config.training.steps) == ("none", 700)


@pytest.mark.parametrize(
    "words", [["parallel.tensor=8"], ["parallel.world_size=64"], ["run.seed=1", "parallel.context=2"]]
)
def test_a_stated_axis_keeps_the_grid_as_it_is_stated(words):
    assert configured(NAME, words, 256) == (apply_overrides(get_recipe(NAME), words), "")


def test_a_number_without_a_grid_changes_the_replicas_alone(capsys):
    assert configured(NAME, [], None) == (get_recipe(NAME), "")
    assert configured(NAME, [], 48)[0] == get_recipe(NAME)
    assert main(["train", NAME, "--nproc", "2048", "training.global_batch_rows=1024", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"the grid is that of 64 GPUs: {NAME} ships none for 2048, but for 1024\n")
    assert "world 2048 = tensor 2 x data 1024" in out
    assert main(["train", NAME, "--nproc", "48", "--dry-run"]) == 2  # 24 replicas do not divide the rows
    told = capsys.readouterr()
    assert told.out == f"the grid is that of 64 GPUs: {NAME} ships none for 48, but for 32 and 64\n"
    assert "data-parallel replicas 24" in told.err


def test_demos_and_run_yamls_have_one_grid(tmp_path, capsys):
    assert configured("demo", [], 4) == (get_recipe("demo"), "")
    config = run_on(64, tmp_path / "run")
    assert configured(str(tmp_path / "run" / "run.yaml"), [], 256) == (config, "")


def test_a_run_that_goes_on_keeps_its_grid(tmp_path, capsys):
    run_on(64, tmp_path / "run", "parallel.tensor=8", "training.recompute=full")
    words = ["train", NAME, "--nproc", "32", f"run.folder={tmp_path / 'run'}", "--dry-run"]
    assert main([*words, "--auto-resume"]) == 0
    out = capsys.readouterr().out
    assert "world 32 = tensor 8 x data 4" in out and "recompute full (tower full)" in out
    assert "the grid is" not in out
    assert main(words) == 0  # a new run; that the folder is taken is seen when it is started
    assert "the grid is as pretrain_8b ships it for 32 GPUs" in capsys.readouterr().out


def test_another_recipes_run_lends_no_grid(tmp_path, capsys):
    run_on(64, tmp_path / "run", "parallel.tensor=8", "run.recipe=sft_8b")
    words = ["train", NAME, "--nproc", "32", f"run.folder={tmp_path / 'run'}", "--resume", "--dry-run"]
    assert main(words) == 0
    assert "the grid is as pretrain_8b ships it for 32 GPUs" in capsys.readouterr().out


JOB = [NAME, "data.path=data", "checkpoint.start_from=", "--tasks-per-node", "8"]


@pytest.mark.parametrize(("nodes", "gpus"), [([], 64), (["--nodes", "32"], 256), (["--nodes", "1"], 8)])
def test_a_job_gets_the_grid_of_its_gpus(nodes, gpus, data, capsys):
    assert main(["job", "check", *JOB, *nodes]) == 0
    parallel, lines = get_recipe(NAME, gpus).parallel, capsys.readouterr().out.splitlines()
    assert (lines[0] == f"the grid is as {NAME} ships it for {gpus} GPUs") == bool(nodes)
    assert any(line.startswith(f"grid        world {gpus} = tensor {parallel.tensor} ") for line in lines)
    assert lines[-1] == f"submit {gpus // 8} runs/{NAME}-slurm"


def test_the_job_begins_what_its_login_node_checked(data, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("MEDX_LIVE_JOBS", "17")
    assert main(["job", "begin", *JOB, "--tasks", "256"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"the grid is as {NAME} ships it for 256 GPUs"
    assert lines[-1] == f"go 256 runs/{NAME}-slurm"


def test_an_elastic_job_keeps_the_grid_of_its_run(data, monkeypatch, capsys):
    """Began on 256 GPUs, goes on with 8, not on the grid of 8, which has other axes; `train` then agrees."""
    words = ["data.path=data", "checkpoint.start_from=", "training.elastic=true"]
    before = run_on(256, Path("runs") / f"{NAME}-slurm", *words, "run.folder=runs/pretrain_8b-slurm")
    assert before.parallel.tensor != get_recipe(NAME, 8).parallel.tensor
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("MEDX_LIVE_JOBS", "17")
    assert main(["job", "begin", NAME, *words, "--tasks", "8", "--tasks-per-node", "8"]) == 0
    out = capsys.readouterr().out
    assert "the grid is" not in out and "elastic: 8 ranks, 256 before, the same global batch" in out
    grid = f"world 8 = tensor {before.parallel.tensor} x data {8 // before.parallel.tensor}"
    assert grid in out
    launch = ["train", NAME, *words, "--auto-resume", "--nproc", "8", f"run.folder=runs/{NAME}-slurm"]
    assert main([*launch, "--dry-run"]) == 0
    assert grid in capsys.readouterr().out


def test_the_login_node_refuses_a_grid_that_gpus_cannot_hold(data, capsys):
    words = [
        "job",
        "check",
        "pretrain_32b",
        "parallel.tensor=1",
        "parallel.pipeline=1",
        "parallel.first_stage_layers=none",
    ]
    words += ["parallel.last_stage_layers=none", f"data.path={data}", "checkpoint.start_from=", "--tasks-per-node", "8"]
    assert main([*words, "--gpu-gb", "80"]) == 2
    said = capsys.readouterr().err
    assert "GB estimated on the worst rank of 256 GPUs" in said and "parallel.tensor=" in said
