"""slurm/pretrain.sh with stand-ins for Slurm's programs: job steps and their tasks, what follows them, what is refused.

What jobs do on a real Slurm: tests/slurm/real.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GPUS = {"SLURM_GPUS_ON_NODE": "2"}
GO, PASSED, DONE = [0, "run  demo\ngo 4 runs/demo-slurm\n"], [0, ""], [0, "finished\ndone\n"]


@pytest.fixture
def submit(submit_script):
    """Function (words, **environment) -> the finished slurm/pretrain.sh, a job on two nodes of two GPUs."""
    return lambda *words, **changes: submit_script("pretrain.sh", words, **(GPUS | changes))


@pytest.fixture
def trains(answers):
    """Everything goes well, but for what is given otherwise."""

    def arrange(**otherwise):
        answers(**{"begin": [GO], "preflight": [PASSED], "train": [[0, ""]], "next": [DONE], **otherwise})

    arrange()
    return arrange


def words_of(tasks, key):
    """Words of the first task of every `medx train`, `medx job begin`, ..."""
    firsts = [words for words, environment, _ in tasks() if environment.get("SLURM_PROCID", "0") == "0"]
    return [words for words in firsts if words[words[0] == "job"] == key]


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


def test_the_header_fits_any_cluster():
    text = (ROOT / "slurm" / "pretrain.sh").read_text()
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--exclusive", "--mem=0", "--requeue", "--signal=USR1@300", "--open-mode=append"} <= set(
        options
    )
    assert not [option for option in options if "gpu" in option or "tasks" in option or "gres" in option]


def test_a_run_is_begun_looked_at_trained_and_ended(submit, tasks, trains, srun_options, tmp_path):
    done = submit("demo", "training.steps=7", "data.path=/two words")
    assert done.returncode == 0, done.stderr
    assert "job 4711, restart 0: 4 tasks on 2 nodes, meeting on node7" in done.stdout
    assert "run  demo" in done.stdout and "go 4" not in done.stdout  # the last line is for the script
    started = tasks()
    recipe, per_task = ["demo", "training.steps=7", "data.path=/two words"], ["--tasks", "4", "--tasks-per-node", "2"]
    launch = ["train", *recipe, "--auto-resume", "--nproc", "4", "run.folder=runs/demo-slurm"]
    facts = "JobId=4711 JobState=RUNNING Reason=None Requeue=1 Restarts=0"
    assert [words for words, _, _ in started] == [
        ["job", "begin", *recipe, *per_task],
        *[["job", "preflight", "runs/demo-slurm"]] * 4,
        *[launch] * 4,
        ["job", "next", "runs/demo-slurm", "--of", "launch", "--code", "0", "--job", facts],
    ]
    assert {folder for _, _, folder in started} == {str(tmp_path / "checkout")}
    assert sorted(environment["SLURM_PROCID"] for _, environment, _ in started[5:9]) == ["0", "1", "2", "3"]
    for _, environment, _ in started[1:9]:
        assert environment["MASTER_ADDR"] == "node7"
        assert environment["SRUN_CPUS_PER_TASK"] == "48"
        assert environment["OMP_NUM_THREADS"] == environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    layout = ["--gres=gpu:2", "--nodes=2", "--ntasks=4", "--ntasks-per-node=2"]
    assert srun_options() == [layout, [*layout, "--kill-on-bad-exit=1"]]


@pytest.mark.parametrize(
    ("changes", "tasks_of_job", "cpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "8"}, 16, 12),
        ({"SLURM_GPUS_ON_NODE": None}, 4, 48),  # stated: 2 tasks a node without GPUs
        ({"SLURM_GPUS_ON_NODE": "8", "MEDX_GPUS_PER_NODE": "4"}, 8, 24),
        ({"SLURM_GPUS_ON_NODE": None, "SLURM_NTASKS_PER_NODE": "3"}, 6, 32),  # sbatch --ntasks-per-node=3
        ({"SLURM_JOB_CPUS_PER_NODE": "96,40"}, 4, 20),
        ({"SLURM_JOB_CPUS_PER_NODE": "1(x2)"}, 4, 1),
    ],
)
def test_a_job_has_a_task_for_each_gpu(submit, tasks, trains, changes, tasks_of_job, cpus):
    assert submit("demo", **changes).returncode == 0
    [begin] = words_of(tasks, "begin")
    assert begin[-4:] == ["--tasks", str(tasks_of_job), "--tasks-per-node", str(tasks_of_job // 2)]
    [environment] = [environment for words, environment, _ in tasks() if words[1] == "next"]
    assert environment["SRUN_CPUS_PER_TASK"] == str(cpus)


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (2, ["--nodes=1", "--ntasks=2", "--ntasks-per-node=2"]),
        (3, ["--nodes=2", "--ntasks=3", "--distribution=plane=2"]),
        (1, ["--nodes=1", "--ntasks=1", "--distribution=plane=2"]),
    ],
)
def test_fewer_ranks_than_gpus_fill_the_first_nodes(submit, tasks, trains, srun_options, ranks, layout):
    trains(begin=[[0, f"go {ranks} runs/my run\n"]])
    assert submit("demo").returncode == 0
    looked, launched = srun_options()
    assert looked[1:] == ["--nodes=2", "--ntasks=4", "--ntasks-per-node=2"]  # every GPU is looked at
    assert launched[1:-1] == layout
    assert words_of(tasks, "train") == [
        ["train", "demo", "--auto-resume", "--nproc", str(ranks), "run.folder=runs/my run"]
    ]


def test_what_is_finished_starts_nothing(submit, tasks, trains):
    trains(begin=[[0, "runs/a is finished: step 9\nfinished 0 runs/a\n"]])
    done = submit("demo", SLURM_RESTART_COUNT="1")
    assert done.returncode == 0 and "is finished: step 9" in done.stdout
    assert len(tasks()) == 1


def test_what_is_refused_ends_the_job(submit, tasks, trains):
    trains(begin=[[2, ""]])
    assert submit("demo").returncode == 2
    assert len(tasks()) == 1


def test_again_starts_ranks_once_more_behind_another_preflight(submit, tasks, trains, tmp_path):
    trains(train=[[137, ""], [76, ""], [0, ""]], next=[[0, "a rank was killed\nagain\n"]] * 2 + [DONE])
    done = submit("demo")
    assert done.returncode == 0, done.stderr
    assert "job 4711: again: a rank was killed" in done.stdout
    assert len(words_of(tasks, "preflight")) == len(words_of(tasks, "train")) == 3
    assert len(words_of(tasks, "begin")) == 1
    assert [words[6] for words in words_of(tasks, "next")] == ["137", "76", "0"]
    ports = [
        environment["MASTER_PORT"]
        for words, environment, _ in tasks()
        if environment.get("SLURM_PROCID") == "0" and words[:2] != ["job", "next"]
    ]
    assert len(set(ports)) == 6 and all(20_000 < int(port) < 32_768 for port in ports)
    assert not (tmp_path / "requeues").exists()


def test_a_requeued_job_takes_other_ports(submit, tasks, trains):
    submit("demo")
    first = {environment.get("MASTER_PORT") for _, environment, _ in tasks()}
    submit("demo", SLURM_RESTART_COUNT="1")
    assert len({environment.get("MASTER_PORT") for _, environment, _ in tasks()}) > len(first)


@pytest.mark.parametrize("of", ["preflight", "train"])
def test_stop_ends_the_job_with_its_code(submit, tasks, trains, of):
    trains(**{of: [[2, ""]]}, next=[[0, "a person must act\nstop 2\n"]])
    done = submit("demo")
    assert done.returncode == 2 and "stop: a person must act" in done.stdout
    [following] = words_of(tasks, "next")
    assert following[3:7] == ["--of", "launch" if of == "train" else of, "--code", "2"]
    assert len(words_of(tasks, "train")) == (of == "train")


REQUEUE = [[0, "saved\nrequeue\n"]]


@pytest.mark.parametrize("says", ["", "Job is pending execution for job 4711"], ids=["by us", "by Slurm already"])
def test_requeue_is_asked_of_slurm(submit, trains, tmp_path, says):
    trains(train=[[75, ""]], next=REQUEUE)
    assert submit("demo", REQUEUE_SAYS=says).returncode == 0
    assert (tmp_path / "requeues").read_text() == "requeued\n"


def test_where_a_requeue_is_impossible_the_job_says_what_to_type(submit, trains):
    trains(train=[[75, ""]], next=REQUEUE)
    done = submit("demo", REQUEUE_SAYS="Requested operation is presently disabled")
    assert done.returncode == 2
    assert "found:  scontrol requeue 4711: Requested operation is presently disabled" in done.stderr
    assert "do:     submit the same again" in done.stderr


def wait_for_ranks(process, tasks):
    """Until four ranks train."""
    deadline = time.monotonic() + 60
    while len([words for words, _, _ in tasks() if words[0] == "train"]) < 4:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_the_script_reaches_the_ranks_as_sigusr1(start_script, tasks, trains, number):
    """srun kills its tasks on SIGTERM, and the code that counts is that of the tasks, not of the interrupted wait."""
    trains(train=[[None, ""]], next=REQUEUE)
    process = start_script("pretrain.sh", ["demo"], **GPUS)
    wait_for_ranks(process, tasks)
    process.send_signal(number)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 0, said + complained
    [following] = words_of(tasks, "next")
    assert following[3:7] == ["--of", "launch", "--code", "75"]


def test_a_job_that_slurm_ends_writes_down_why_before_its_ranks_are_gone(start_script, tasks, trains, tmp_path):
    """Ranks that cannot leave, as in a collective whose peer is dead: the code is that of SIGTERM, the word `stop`."""
    trains(train=[[None, ""]], next=[[0, "cancelled\nstop 143\n"]])
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(scontrol.read_text().replace("RUNNING", "COMPLETING"))
    process = start_script("pretrain.sh", ["demo"], **GPUS)
    wait_for_ranks(process, tasks)
    process.terminate()
    deadline = time.monotonic() + 60
    while not (following := words_of(tasks, "next")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert following[0][3:7] == ["--of", "launch", "--code", "143"]
    assert process.poll() is None  # ranks that save are waited for
    for words, environment, _ in tasks():
        if words[0] == "train":
            os.kill(int(environment["PID"]), signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 143
