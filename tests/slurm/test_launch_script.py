"""`medx launch` with stand-ins for Slurm's programs: what it carries to a cluster, word by word, and what it refuses.

Golden files say what is run there and what sbatch is told; commits, folders of tests and random names are replaced.
With nemo-run's environment (`make launch-env`) its tunnel and packager carry the same; without it a stand-in does.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from megatron_medx import cli
from megatron_medx.launch import launch as launching
from megatron_medx.launch import outcome
from tests.slurm.launch_checkout import LAUNCHER, add_launcher, commit_all

GOLDEN = Path(__file__).parent / "golden"
SUBMIT = [0, "run  demo\nsubmit 2 runs/demo-slurm\n"]


@pytest.fixture(params=["stand-in", "nemo-run"])
def courier(request):
    """Which of the two carries."""
    if request.param == "nemo-run" and not LAUNCHER.is_dir():
        pytest.skip("no nemo-run: make launch-env")
    return request.param


@pytest.fixture
def prepare(checkout, tmp_path, monkeypatch, capfd):
    """Function (nemo-run's environment?) -> function (words behind `medx launch`) -> exit code, answer, complaint."""

    def make(real):
        add_launcher(checkout, real)
        (checkout / ".gitignore").write_text("/.venv*/\n/runs/\n/.launched/\n")
        (checkout / "slurm" / "clusters" / "local.env").write_text("")
        (checkout / "slurm" / "clusters" / "ours.env").write_text("export SBATCH_ACCOUNT=medicine\n")
        commit_all(checkout, "A better rate")
        (tmp_path / ".bash_profile").write_text(f"PATH={tmp_path}/bin:/usr/bin:/bin\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("RECORD", str(tmp_path))
        monkeypatch.setenv("SLURM_JOB_ID", "4711")  # typed in a job's shell; what is launched is no part of it
        monkeypatch.chdir(checkout)

        def run(*words):
            code = cli.main(["launch", *words])
            said = capfd.readouterr()
            return code, said.out, said.err

        return run

    return make


@pytest.fixture
def launch(prepare):
    """The function, with the stand-in for nemo-run."""
    return prepare(real=False)


def shown(text: str, checkout: Path) -> str:
    """With what differs from one test to the next replaced."""
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True, text=True)
    text = text.replace(sha.stdout.strip(), "SHA").replace(sha.stdout[:12], "COMMIT").replace(str(checkout), "CHECKOUT")
    return re.sub(r"\.[0-9a-f]{8}\.tar\.gz", ".RANDOM.tar.gz", text)


def carried(tmp_path: Path) -> str:
    """Every script that ran on the cluster, and every file that was put there, in order."""
    lines = []
    for line in (tmp_path / "errands").read_text().splitlines():
        errand = json.loads(line)
        if errand["errand"] == "run":
            lines.append(f"RUN\n{errand['command']}\n")
        elif errand["errand"] == "put":
            lines.append(f"PUT the commit's archive as\n{errand['target']}\n")
    return "\n".join(lines)


def test_what_is_carried_is_as_it_was(launch, answers, checkout, tmp_path):
    """All that happens on a cluster, but for looking at jobs: a first launch, and a second one of the same commit."""
    answers(check=[SUBMIT])
    assert launch("demo", "training.steps=7", "--cluster", "ours", "--detach", "--nodes", "2")[0] == 0
    assert shown(carried(tmp_path), checkout) == (GOLDEN / "launch_first.txt").read_text()
    (tmp_path / "errands").unlink()
    assert launch("demo", "run.folder=runs/a b", "--cluster", "ours", "--detach", "--time", "12:00:00")[0] == 0
    assert shown(carried(tmp_path), checkout) == (GOLDEN / "launch_again.txt").read_text()


def test_what_sbatch_is_told_is_as_it_was(courier, prepare, answers, checkout, tmp_path):
    answers(check=[SUBMIT])
    launch = prepare(courier == "nemo-run")
    sweep = ("--sweep", "optimizer.lr=2e-3,1e-3", "--accept-changes")
    code, said, complained = launch("demo", "--cluster", "local", "--detach", "--nodes", "2", *sweep)
    assert code == 0, complained
    assert shown((tmp_path / "submissions").read_text(), checkout) == (GOLDEN / "launch_sbatch.txt").read_text()
    assert shown(said, checkout) == (GOLDEN / "launch_said.txt").read_text()


def test_the_copy_is_the_commit_and_shares_what_runs_need(courier, prepare, answers, checkout, tasks):
    answers(check=[SUBMIT])
    launch = prepare(courier == "nemo-run")
    (checkout / "slurm" / "pretrain.sh").chmod(0o755)
    assert launch("demo", "--cluster", "local", "--detach")[0] == 0
    [copy] = [path for path in (checkout / ".launched").iterdir() if path.is_dir()]
    assert not list((checkout / ".launched").glob(".part*")) and not list((checkout / ".launched").glob("*.tar.gz"))
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert (copy / "COMMIT").read_text() == head
    assert (copy / "slurm" / "pretrain.sh").read_bytes() == (checkout / "slurm" / "pretrain.sh").read_bytes()
    assert (copy / "runs").readlink() == checkout / "runs" and (copy / ".venv").readlink() == checkout / ".venv"
    [(words, environment, folder)] = tasks()
    assert words[:3] == ["job", "check", "demo"] and Path(folder) == copy
    assert environment["PYTHONPATH"] == str(copy) and environment["MEDX_CLUSTER"] == "local"
    assert "SLURM_JOB_ID" not in environment


def test_a_dry_run_changes_nothing(launch, checkout, tmp_path):
    code, said, _ = launch("demo", "--cluster", "local", "--dry-run", "--sweep", "run.seed=1,2")
    assert code == 0
    assert shown(said, checkout) == (GOLDEN / "launch_dry_run.txt").read_text()
    assert not (checkout / ".launched").exists() and not (tmp_path / "submissions").exists()


def test_a_dry_run_needs_no_slurm(launch, tmp_path):
    (tmp_path / "bin" / "sinfo").write_text("#!/bin/sh\nexit 1\n")
    code, said, _ = launch("demo", "--cluster", "local", "--dry-run")
    assert code == 0 and "no Slurm answers there" in said


def test_a_dry_run_asks_the_login_node_where_the_commit_is_there(launch, answers, tmp_path):
    answers(check=[SUBMIT])
    assert launch("demo", "--cluster", "local", "--detach")[0] == 0
    code, said, _ = launch("demo", "--cluster", "local", "--dry-run")
    assert code == 0 and re.search("this machine would take it: .*/runs/demo-slurm, nodes: 2\n", said)
    assert (tmp_path / "submissions").read_text().count("--parsable") == 1


def test_all_of_a_sweep_is_checked_before_anything_is_submitted(launch, answers, tmp_path):
    """The third of three is refused on the login node."""
    answers(check=[SUBMIT, SUBMIT, [2, ""]])
    code, _, complained = launch("demo", "--cluster", "local", "--detach", "--sweep", "run.seed=1,2,3")
    assert code == 2 and "slurm/pretrain.sh on this machine ended with code 2" in complained
    assert "--parsable" not in (tmp_path / "submissions").read_text()


def test_what_was_submitted_before_a_failure_is_named(launch, answers, tmp_path):
    answers(check=[SUBMIT] * 5 + [[2, ""]])
    code, _, complained = launch("demo", "--cluster", "local", "--detach", "--sweep", "run.seed=1,2,3")
    assert code == 2 and "submitted before, and they go on: job 4712, job 4712" in complained


def test_what_slurm_refuses_comes_back_in_three_parts(launch, answers, monkeypatch):
    answers(check=[SUBMIT])
    monkeypatch.setenv("SBATCH_REFUSES", "sbatch: error: Invalid account")
    code, _, complained = launch("demo", "--cluster", "local")
    assert code == 2 and "found:  on this machine: sbatch --test-only" in complained
    assert "sbatch: error: Invalid account" in complained and "\nneeded: account, partition" in complained


def test_an_environment_that_is_too_old_is_said(launch, answers):
    answers(check=[[1, ""]])
    code, _, complained = launch("demo", "--cluster", "local")
    assert code == 2 and "ended with code 1" in complained and "make env in the checkout there" in complained


@pytest.mark.parametrize(
    ("program", "message"),
    [("sinfo", "Slurm does not answer sinfo on this machine"), ("sbatch", "no sbatch on the PATH of a login shell")],
)
def test_a_machine_without_slurm_is_refused(launch, tmp_path, program, message):
    hidden = tmp_path / "bin" / program
    hidden.write_text("#!/bin/sh\nexit 1\n")
    if program == "sbatch":
        hidden.unlink()
        (tmp_path / ".bash_profile").write_text(f"PATH={tmp_path}/bin:{tmp_path}/few\n")
        (tmp_path / "few").mkdir()
        (tmp_path / "few" / "timeout").symlink_to("/usr/bin/timeout")
    code, _, complained = launch("demo", "--cluster", "local")
    assert code == 2 and message in complained


def test_a_folder_that_cannot_be_written_is_refused(launch, checkout):
    """Of a file, which stands where the folder of copies should."""
    (checkout / ".launched").write_text("")
    subprocess.run(["git", "add", "--force", ".launched"], cwd=checkout, check=True)
    commit_all(checkout, "In the way")
    code, _, complained = launch("demo", "--cluster", "local")
    assert code == 2 and "could not be copied to this machine: mkdir" in complained
    assert "needed: a " in complained and "do:     look at its owner" in complained


def test_without_nemo_runs_environment_it_is_refused(launch, checkout):
    (checkout / ".venv-launch" / "bin" / "python").unlink()
    code, _, complained = launch("demo", "--cluster", "local", "--dry-run")
    assert code == 2 and "found:  no .venv-launch in" in complained and "do:     make launch-env" in complained


@pytest.fixture
def quick(monkeypatch):
    """No seconds between two looks at a job."""
    monkeypatch.setattr(outcome, "LOCAL_S", 0.01)


def ended(checkout, code, why):
    run = checkout / "runs" / "demo-slurm"
    run.mkdir(parents=True)
    event = {"time": "2026-11-23T10:00:00+00:00", "event": "job_ended", "job": "4712", "code": code, "why": why}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")


def test_a_job_that_succeeded_ends_with_0(launch, answers, checkout, quick):
    """Slurm has forgotten it; its run says how it ended."""
    answers(check=[SUBMIT])
    ended(checkout, 0, "the last step is done")
    code, said, complained = launch("demo", "--cluster", "local")
    assert code == 0 and not complained
    assert said.splitlines()[-1] == f"job 4712  {checkout}/runs/demo-slurm  COMPLETED"


def test_a_job_that_failed_ends_with_1_and_says_why(launch, answers, checkout, quick):
    answers(check=[SUBMIT], status=[[0, "state  stopped: a rank fell\n"]])
    ended(checkout, 3, "3 failures in succession")
    code, said, complained = launch("demo", "--cluster", "local")
    assert code == 1
    assert "job 4712 failed: FAILED, exit code 3: 3 failures in succession" in complained
    assert f"its log: this machine, {checkout}/.launched/slurm-4712.out" in complained
    assert "state  stopped: a rank fell" in complained
    assert said.splitlines()[-1].endswith("FAILED, exit code 3")


def test_a_job_that_nobody_knows_of_has_not_succeeded(launch, answers, checkout, quick):
    """And where there is no run yet, the end of the job's log is shown."""
    answers(check=[SUBMIT], status=[[2, ""]])
    assert launch("demo", "--cluster", "local", "--detach")[0] == 0
    (checkout / ".launched" / "slurm-4712.out").write_text("slurmstepd: error: no space\n")
    code, _, complained = launch("demo", "--cluster", "local")
    assert code == 1 and "job 4712 failed: UNKNOWN" in complained and "slurmstepd: error: no space" in complained


def test_ctrl_c_before_a_job_is_followed_ends_in_words(launch, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "submit", interrupted)
    code, _, complained = launch("demo", "--cluster", "local")
    assert code == 130 and "stopped; jobs that are named above go on" in complained
