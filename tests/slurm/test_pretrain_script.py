"""slurm/pretrain.sh with stand-ins for Slurm's programs: what each task is told, and what is refused before srun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "slurm" / "pretrain.sh"

# Starts the tasks one after the other, as srun numbers them; its own options are recorded and dropped.
SRUN = """#!/usr/bin/env bash
set -e
while [[ "$1" == --* ]]; do echo "$1" >> "$RECORD/srun_options"; shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@"
done
"""
SCONTROL = """#!/usr/bin/env bash
[[ "$*" == "show hostnames node[7-8]" ]] && printf 'node7\\nnode8\\n'
"""
# Records words and environment of every task, then is the real program.
MEDX = f"""#!{sys.executable}
import json, os, sys
sys.path.insert(0, {str(ROOT)!r})
with open(os.environ["RECORD"] + "/tasks", "a") as file:
    file.write(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]) + "\\n")
from megatron_medx.cli import main
sys.exit(main())
"""


@pytest.fixture
def submit(tmp_path):
    """Function (words, **environment) -> the finished script, as a batch job of two nodes with one task each."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("medx", MEDX)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    checkout = tmp_path / "checkout"
    (checkout / "slurm" / "clusters").mkdir(parents=True)
    spooled = tmp_path / "slurm_script"  # as slurmd does: a copy elsewhere
    spooled.write_bytes(SCRIPT.read_bytes())
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_CPUS_PER_TASK": "12",
        "SLURM_SUBMIT_DIR": str(checkout),
    }
    basics = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path), "RECORD": str(tmp_path)}

    def run(*words, **changes):
        environment = {key: value for key, value in (basics | job | changes).items() if value is not None}
        return subprocess.run(
            ["bash", spooled, *words], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    return run


def tasks(tmp_path):
    return [json.loads(line) for line in (tmp_path / "tasks").read_text().splitlines()]


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


def test_every_task_trains_the_recipe_on_all_tasks(submit, tmp_path):
    done = submit("demo", "training.steps=7", "--dry-run")
    assert done.returncode == 0, done.stderr
    started = tasks(tmp_path)
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


def test_words_with_spaces_arrive_whole(submit, tmp_path):
    submit("demo", "run.folder=runs/two words", "--dry-run")
    assert tasks(tmp_path)[0][0][2] == "run.folder=runs/two words"


def test_a_grid_that_does_not_fit_ends_the_job(submit):
    done = submit("demo", SLURM_NTASKS="3")
    assert done.returncode == 2
    assert "start 4 ranks with --nproc 4" in done.stderr


def test_the_clusters_settings_are_read(submit, tmp_path):
    settings = tmp_path / "checkout" / "slurm" / "clusters" / "ours.env"
    settings.write_text("export NCCL_SOCKET_IFNAME=ib7\n")
    assert submit("demo", "--dry-run", MEDX_CLUSTER="ours").returncode == 0
    assert tasks(tmp_path)[0][1]["NCCL_SOCKET_IFNAME"] == "ib7"


def test_the_environment_of_the_checkout_is_entered(submit, tmp_path):
    activate = tmp_path / "checkout" / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("export ENTERED=yes\n")
    submit("demo", "--dry-run")
    assert tasks(tmp_path)[0][1]["ENTERED"] == "yes"


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (["demo"], {"SLURM_JOB_ID": None}, "do:     sbatch slurm/pretrain.sh RECIPE"),
        ([], {}, "found:  no recipe"),
        (["demo"], {"MEDX_CLUSTER": "moon"}, r"no slurm/clusters/moon.env in"),
        (["demo"], {"PATH": "/usr/bin:/bin"}, "found:  no medx on the PATH"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(submit, tmp_path, words, changes, message):
    done = submit(*words, **changes)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "tasks").exists()
