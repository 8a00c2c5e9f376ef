"""`medx launch` on a real Slurm, by nemo-run: runs that succeed, a sweep, jobs that fail, and the way there by ssh."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from slurm_jobs import Job

from tests.slurm.launch_checkout import LAUNCHER, add_launcher, clone_files, commit_all

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not LAUNCHER.is_dir(), reason="no nemo-run: make launch-env"),
]

MEDX = Path(sys.prefix) / "bin" / "medx"
FEW = ("training.steps=3", "checkpoint.every_steps=100")
LAUNCH_S = 900
SOON_S = 60
"""Seconds that a refusal may take on a busy machine; alone it takes 3, a host that does not answer 13."""

NOT_THERE = """[[ -z "${SLURM_JOB_ID:-}" ]] || MEDX_CONTAINER=/images/none.sif
"""
"""Of a cluster file: login nodes have an environment, compute nodes an image that is not there."""


@pytest.fixture(scope="module")
def host_key(tmp_path_factory):
    """A key pair, for an sshd and for who comes to it."""
    key = tmp_path_factory.mktemp("keys") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    return key


@pytest.fixture(scope="module")
def sshd(shell, host_key):
    """Port of an sshd of our own; the home folder knows it as `lab`, and as `stranger` and `forbidden` what fails."""
    if not shutil.which("sshd", path="/usr/sbin:/usr/bin"):
        pytest.skip("no sshd: apt install openssh-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder, public = host_key.parent, host_key.with_suffix(".pub").read_text()
    (folder / "authorized_keys").write_text(public)
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": host_key,
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": folder / "pid",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd asks for it
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "other"], check=True)
    ssh = Path(shell["HOME"]) / ".ssh"
    ssh.mkdir()
    here = f"  HostName 127.0.0.1\n  Port {port}\n"
    (ssh / "config").write_text(
        f"Host lab\n{here}  IdentityFile {host_key}\n"
        f"Host forbidden\n{here}  IdentityFile {folder / 'other'}\n"
        f"Host stranger\n  HostName localhost\n  Port {port}\n  IdentityFile {host_key}\n"
        "Host closed\n  HostName 127.0.0.1\n  Port 1\n"
    )
    (ssh / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(public.split()[:2])}\n")
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", folder / "sshd_config"])
    deadline = time.monotonic() + 30
    while not (folder / "pid").exists():
        assert server.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    yield port
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def clone(shell, tmp_path_factory):
    """A checkout with nothing that is not committed, and cluster files for what is tried here."""
    folder = tmp_path_factory.mktemp("launch") / "checkout"
    clone_files(folder)
    clusters = folder / "slurm" / "clusters"
    (clusters / "imageless.env").write_text(NOT_THERE)
    (clusters / "single.env").write_text("MEDX_GPUS_PER_NODE=1\n")
    for host in ("lab", "forbidden", "stranger", "closed", "nowhere.invalid"):
        (clusters / f"{host.partition('.')[0]}.env").write_text(
            f"MEDX_LAUNCH_HOST={host}\nMEDX_LAUNCH_FOLDER={folder}\nMEDX_VENV={sys.prefix}\n"
            f"export SLURM_CONF={shell['SLURM_CONF']}\n"
        )
    (clusters / "elsewhere.env").write_text("MEDX_LAUNCH_HOST=lab\nMEDX_LAUNCH_FOLDER=/nowhere\n")
    commit_all(folder, "What is launched")
    with open(folder / ".git" / "info" / "exclude", "a") as excluded:
        excluded.write("/.venv-launch/\n")
    add_launcher(folder, real=True)
    return folder


@pytest.fixture(scope="module")
def launch(shell, clone):
    """Function (words behind `medx launch`) -> the finished command, typed in the clone."""

    def run(*words, timeout_s=LAUNCH_S):
        command = [MEDX, "launch", *words]
        return subprocess.run(command, cwd=clone, env=shell, capture_output=True, text=True, timeout=timeout_s)

    return run


@pytest.fixture(scope="module")
def small(run_words):
    """A recipe with overrides: few steps of a small network."""
    return ["demo", *run_words, *FEW]


@pytest.fixture(scope="module")
def succeeded(launch, small, clone):
    """A launch that was followed to its end, and the folder of its run."""
    done = launch(*small, "--cluster", "local", "--time", "0:30:00")
    return done, clone / "runs" / "demo-slurm"


def test_a_run_is_launched_followed_and_has_succeeded(succeeded, clone):
    done, run = succeeded
    assert done.returncode == 0, done.stdout + done.stderr
    [number] = set(re.findall(r"job (\d+)", done.stdout))
    assert re.search(rf"^job {number}  {run}  COMPLETED, step 3 of 3, loss \d\.\d{{4}}$", done.stdout, re.MULTILINE)
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    log = clone / ".launched" / f"slurm-{number}.out"
    assert f"job {number}, restart 0: " in log.read_text()


def test_what_ran_is_the_commit_that_was_launched(succeeded, clone):
    """Not the code that the environment was installed from; and the run says so."""
    _, run = succeeded
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True).stdout.strip()
    assert yaml.safe_load((run / "run.yaml").read_text())["provenance"]["commit"] == commit
    copy = clone / ".launched" / commit[:12]
    assert list((copy / "megatron_medx").rglob("__pycache__"))  # its code was imported
    assert not subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout


def test_a_dry_run_asks_the_login_node_where_the_commit_is_there(succeeded, launch, small):
    done = launch(*small, "run.folder=runs/another", "--cluster", "local", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("this machine would take it: .*/runs/another, nodes: 1\n", done.stdout)
    assert "nothing was submitted" in done.stdout and "job " not in done.stdout.replace("the job's", "")


def test_what_the_login_node_refuses_is_said_in_its_words(succeeded, launch, small):
    done = launch(*small, "--cluster", "local", timeout_s=SOON_S)
    assert done.returncode == 2 and "runs/demo-slurm is finished: step 3 of 3 is saved" in done.stderr
    assert [done.stderr.count(part) for part in ("found:", "needed:", "do:")] == [1, 1, 1]
    done = launch(*small, "run.folder=runs/large", "--cluster", "local", "--nodes", "40", timeout_s=SOON_S)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "found:  on this machine:" in done.stderr


def test_a_sweep_has_a_job_for_each_value(launch, small, clone):
    words = [word for word in small if not word.startswith("optimizer.lr=")]
    size = ("parallel.tensor=1", "--nodes", "1", "--cluster", "single")
    done = launch(*words, *size, "--sweep", "optimizer.lr=2e-3,4e-3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(set(re.findall(r"^job (\d+)", done.stdout, re.MULTILINE))) == 2
    for value in ("2e-3", "4e-3"):
        run = clone / "runs" / f"demo-lr={value}"
        assert f"{run}  COMPLETED, step 3 of 3" in done.stdout
        assert yaml.safe_load((run / "run.yaml").read_text())["optimizer"]["lr"] == float(value)


def test_nothing_of_a_sweep_is_submitted_when_one_is_refused(launch, small, shell):
    [data] = [word for word in small if word.startswith("data.path=")]
    words = [word for word in small if word != data]
    done = launch(*words, "run.folder=runs/refused", "--cluster", "local", "--sweep", f"{data},data/none")
    assert done.returncode == 2 and "manifest.json" in done.stderr
    assert "\njob " not in done.stdout and not _queued(shell)


def test_a_job_that_fails_is_told_as_failed(launch, small, clone):
    done = launch(*small, "run.folder=runs/imageless", "--cluster", "imageless")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^job \d+ failed: FAILED \(NonZeroExitCode\), exit code 2$", done.stderr, re.MULTILINE)
    assert "found:  MEDX_CONTAINER=/images/none.sif, but no such file on node" in done.stderr
    assert f"its log: this machine, {clone}/.launched/slurm-" in done.stderr
    assert "FAILED (NonZeroExitCode), exit code 2" in done.stdout.splitlines()[-1]


def test_a_job_that_somebody_cancels_is_told_as_failed(shell, clone, small):
    words = [MEDX, "launch", *small, "run.folder=runs/cancelled", "--cluster", "local"]
    with subprocess.Popen(words, cwd=clone, env=shell, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        number = next(found[1] for line in lines if (found := re.match(r"job (\d+)  ", line)))
        subprocess.run(["scancel", number], env=shell, check=True)
        rest = list(lines)
        assert process.wait(LAUNCH_S) == 1
    assert "CANCELLED" in rest[-1]


def test_who_stops_following_is_told_how_to_look(shell, clone, small):
    words = [MEDX, "launch", *small, "run.folder=runs/left", "--cluster", "local"]
    with subprocess.Popen(words, cwd=clone, env=shell, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        number = next(found[1] for line in lines if (found := re.match(r"\S+  job (\d+)  ", line)))
        process.send_signal(signal.SIGINT)
        rest = "".join(lines)
        assert process.wait(60) == 130
    assert "what was submitted goes on" in rest and f"scancel {number}" in rest
    assert number in _queued(shell)
    subprocess.run(["scancel", number], env=shell, check=True)
    Job(number, clone / ".launched" / f"slurm-{number}.out", shell).ended()


def test_a_run_is_launched_by_ssh(sshd, launch, small, clone, shell):
    done = launch(*small, "run.folder=runs/by-ssh", "--cluster", "lab", "--detach")
    assert done.returncode == 0, done.stdout + done.stderr
    number = re.search(r"^job (\d+)  ", done.stdout, re.MULTILINE)[1]
    assert f"to look, on lab, in {clone}:" in done.stdout
    job = Job(number, clone / ".launched" / f"slurm-{number}.out", shell)
    try:
        assert job.facts()["JobName"] == "medx-by-ssh"
    finally:
        subprocess.run(["scancel", number], env=shell, check=True)
        job.ended()


@pytest.mark.parametrize(
    ("name", "found", "do"),
    [
        ("closed", "closed: no connection: ", "look why `ssh closed` fails"),
        ("nowhere", "nowhere.invalid: unknown host: ", "correct MEDX_LAUNCH_HOST in slurm/clusters/nowhere.env"),
        ("forbidden", "forbidden: authentication: ", "make `ssh -o BatchMode=yes forbidden` work"),
        ("stranger", "stranger: unknown host key: [localhost]:", "ssh stranger once by hand"),
        ("elsewhere", "no folder /nowhere on lab", "git clone and make env there"),
    ],
)
def test_a_way_that_fails_is_said_in_seconds(sshd, launch, name, found, do):
    done = launch("demo", "--cluster", name, "--dry-run", timeout_s=SOON_S)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"found:  {found}" in done.stderr and f"do:     {do}" in done.stderr, done.stderr


def _queued(shell: dict[str, str]) -> list[str]:
    done = subprocess.run(["squeue", "--noheader", "--format=%A"], env=shell, capture_output=True, text=True)
    return done.stdout.split()
