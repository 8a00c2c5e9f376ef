"""slurm/pretrain.sh with stand-ins for Slurm's programs: what each task is told, and what is refused before srun."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def submit(submit_script):
    """Function (words, **environment) -> the finished slurm/pretrain.sh."""
    return lambda *words, **changes: submit_script("pretrain.sh", words, **changes)


@pytest.mark.parametrize("script", sorted((ROOT / "slurm").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_executable_bash(script):
    assert subprocess.run(["bash", "-n", script], check=True).returncode == 0
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    before = text[: text.index("\nset -euo pipefail\n")]
    assert "#SBATCH" in before and text.count("\n#SBATCH") == before.count("\n#SBATCH")  # sbatch stops at a command


@pytest.mark.parametrize("settings", sorted((ROOT / "slurm" / "clusters").glob("*.env")), ids=lambda path: path.name)
def test_cluster_settings_can_be_read(settings):
    subprocess.run(["bash", "-euo", "pipefail", "-c", f"source {settings}"], check=True)


def test_every_task_trains_the_recipe_on_all_tasks(submit, tasks, tmp_path):
    done = submit("demo", "training.steps=7", "--dry-run")
    assert done.returncode == 0, done.stderr
    started = tasks()
    assert [words for words, _, _ in started] == [
        ["train", "demo", "training.steps=7", "--dry-run", "--nproc", "2"]
    ] * 2
    assert {folder for _, _, folder in started} == {str(tmp_path / "checkout")}
    assert [environment["SLURM_PROCID"] for _, environment, _ in started] == ["0", "1"]
    for _, environment, _ in started:
        assert environment["MASTER_ADDR"] == "node7"
        assert environment["SRUN_CPUS_PER_TASK"] == "12"
        assert environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert (tmp_path / "srun_options").read_text().split() == ["--kill-on-bad-exit=1"]
    assert "job 4711: 2 tasks on 2 nodes, meeting on node7" in done.stdout
    assert done.stdout.count("\nrun  ") == 1  # the first task describes the run, not each


def test_words_with_spaces_arrive_whole(submit, tasks):
    submit("demo", "run.folder=runs/two words", "--dry-run")
    assert tasks()[0][0][2] == "run.folder=runs/two words"


def test_a_grid_that_does_not_fit_ends_the_job(submit):
    done = submit("demo", SLURM_NTASKS="3")
    assert done.returncode == 2
    assert "start 4 ranks with --nproc 4" in done.stderr


def test_the_clusters_settings_are_read(submit, tasks, tmp_path):
    settings = tmp_path / "checkout" / "slurm" / "clusters" / "ours.env"
    settings.write_text("export NCCL_SOCKET_IFNAME=ib7\n")
    assert submit("demo", "--dry-run", MEDX_CLUSTER="ours").returncode == 0
    assert tasks()[0][1]["NCCL_SOCKET_IFNAME"] == "ib7"


def test_the_environment_of_the_checkout_is_entered(submit, tasks, tmp_path):
    activate = tmp_path / "checkout" / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("export ENTERED=yes\n")
    submit("demo", "--dry-run")
    assert tasks()[0][1]["ENTERED"] == "yes"


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (["demo"], {"SLURM_JOB_ID": None}, "do:     sbatch slurm/pretrain.sh RECIPE"),
        ([], {}, "found:  no recipe"),
        (["demo"], {"MEDX_CLUSTER": "moon"}, r"no slurm/clusters/moon.env in"),
        (["demo"], {"PATH": "/usr/bin:/bin"}, "found:  no medx on the PATH"),
        (["demo"], {"SLURM_SUBMIT_DIR": "/usr"}, "/usr is no checkout: no slurm/job.bash"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(submit, tasks, words, changes, message):
    done = submit(*words, **changes)
    assert done.returncode == 2
    assert message in done.stderr
    assert not tasks()
