"""slurm/data.sh with stand-ins for Slurm's programs: what is submitted, how it waits, and when it gives up."""

import shlex
import subprocess

import pytest

from megatron_medx import cli

# Answers with the next line of $RECORD/queue, where `whole` means: no job is left, and the folder is whole.
SQUEUE = """#!/usr/bin/env bash
echo "$*" >> "$RECORD/asked"
answer="$(head -n 1 "$RECORD/queue")"; sed -i 1d "$RECORD/queue"
case "$answer" in
    whole) rm -rf "$OUT/.build"; mkdir -p "$OUT"; touch "$OUT/manifest.json" ;;
    silent) exit 1 ;;
    *) printf '%s' "$answer" ;;
esac
"""
JOB = {
    "SLURM_NTASKS": "1",
    "SLURM_JOB_PARTITION": "cpu",
    "SLURM_JOB_ACCOUNT": "med",
    "SLURM_CONF": "/a/slurm.conf",
    "MEDX_ENDS": "0",
    "MEDX_POLL_S": "0",
}


@pytest.fixture
def out(tmp_path):
    """The data folder, `data/a b` in the checkout."""
    return tmp_path / "checkout" / "data" / "a b"


@pytest.fixture
def name(out):
    """What the array's jobs are called: a function of OUT alone."""
    said = subprocess.run(["cksum"], input=f"{out}\n", capture_output=True, text=True, check=True).stdout
    return f"medx-data-{said.split()[0]}"


@pytest.fixture
def submit(submit_script, tmp_path, out):
    """Function (queue, words, **environment) -> the finished slurm/data.sh; queue: what squeue answers in turn."""
    program = tmp_path / "bin" / "squeue"
    program.write_text(SQUEUE)
    program.chmod(0o755)

    def run(queue, *words, **changes):
        (tmp_path / "queue").write_text("".join(f"{answer}\n" for answer in queue))
        return submit_script("data.sh", words, **(JOB | {"OUT": str(out)} | changes))

    return run


def settings_of(words):
    """--slurm of a command of medx."""
    return dict(pair.split("=", 1) for pair in words[words.index("--slurm") + 1].split(","))


def test_the_build_is_submitted_with_this_jobs_partition_and_waited_for(submit, tasks, tmp_path, name):
    done = submit(["", "71_[0-7]", "71_3", "whole"], "corpora/x", "data/a b", "--splits", "train=0.9,val=0.1")
    assert done.returncode == 0, done.stderr
    ((words, _, folder),) = tasks()
    assert words[:6] == ["data", "build", "corpora/x", "data/a b", "--splits", "train=0.9,val=0.1"]
    assert settings_of(words) == {
        "partition": "cpu",
        "account": "med",
        "time": "04:00:00",
        "kill-on-invalid-dep": "yes",
        "job_name": name,
    }
    assert cli._parser().parse_args(words).slurm == settings_of(words)
    assert folder == str(tmp_path / "checkout")
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"--noheader --me --name={name},{name}-merge --format=%i"
    ] * 4
    assert done.stdout.splitlines()[-1] == "data/a b is whole"


def test_what_this_job_is_given_does_not_reach_the_jobs_it_submits(submit, tasks):
    """With this job's SRUN_CPUS_PER_TASK srun would ask for more CPUs than a task has; sbatch reads SBATCH_*."""
    submit(["", "whole"], "x", "data/a b", SLURM_MEM_PER_CPU="4096", SBATCH_GPUS_PER_NODE="8", SBATCH_QOS="long")
    words, environment, _ = tasks()[0]
    assert [key for key in environment if key.startswith(("SLURM_", "SRUN_", "SBATCH_"))] == ["SLURM_CONF"]
    assert settings_of(words)["qos"] == "long"
    assert environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    "option", [["--slurm", "time=1:00,partition=big,workers=7"], ["--slurm=time=1:00,partition=big,workers=7"]]
)
def test_settings_that_are_named_stay(submit, tasks, option):
    assert submit(["", "whole"], "x", "data/a b", *option, "--overwrite", SLURM_JOB_ACCOUNT=None).returncode == 0
    words = tasks()[0][0]
    assert words[:5] == ["data", "build", "x", "data/a b", "--overwrite"]
    found = settings_of(words)
    assert (found["time"], found["partition"], found["workers"], "account" in found) == ("1:00", "big", "7", False)


def test_failed_jobs_are_submitted_again_and_then_it_gives_up(submit, tasks, out):
    done = submit(["", "", "", "71", "whole"], "x", "data/a b")
    assert done.returncode == 0 and len(tasks()) == 2, done.stderr
    assert "round 1: jobs ended and data/a b is not whole; logs: data/a b/slurm" in done.stderr
    (out / "manifest.json").unlink()
    done = submit([""] * 6, "x", "data/a b")
    assert done.returncode == 2 and len(tasks()) == 5
    assert "found:  data/a b is not whole after 3 rounds" in done.stderr and "done tasks are kept" in done.stderr


def test_a_folder_that_is_still_merged_is_not_whole(submit, out):
    (out / ".build").mkdir(parents=True)
    (out / "manifest.json").write_text("{}")
    assert "not whole after 3 rounds" in submit([""] * 6, "x", "data/a b").stderr


def test_jobs_of_an_earlier_submission_are_waited_for(submit, tasks):
    done = submit(["71_[4-7]", "71_7", "whole"], "x", "data/a b")
    assert done.returncode == 0 and not tasks()
    assert "round 1: jobs of an earlier submission are at work" in done.stdout


def test_a_controller_that_does_not_answer_is_asked_again(submit, tasks):
    done = submit(["silent", "", "silent", "71", "silent", "whole"], "x", "data/a b")
    assert done.returncode == 0 and len(tasks()) == 1


def test_a_start_after_a_requeue_finds_the_folder_whole(submit, tasks, out):
    out.mkdir(parents=True)
    (out / "splits.json").write_text("{}")
    done = submit([], "x", "data/a b", SLURM_RESTART_COUNT="1")
    assert done.returncode == 0 and not tasks() and "finished it" in done.stdout
    assert submit(["", "whole"], "x", "data/a b", "--overwrite", SLURM_RESTART_COUNT="1").returncode == 0
    assert submit(["", "whole"], "x", "data/a b").returncode == 0  # a first start: medx refuses
    assert len(tasks()) == 2


def test_a_container_has_no_sbatch_and_builds_on_this_node(submit, tasks, tmp_path):
    """srun's stand-in drops its own options, so what is left runs without a container."""
    container = {"MEDX_CONTAINER": "nvcr.io#nvidia/pytorch", "MEDX_CONTAINER_RUNTIME": "pyxis"}
    done = submit([""], "x", "data/a b", "--max-slices", "9", **container)
    assert done.returncode == 0, done.stderr
    assert tasks()[0][0] == ["data", "build", "--workers", "12", "x", "data/a b", "--max-slices", "9"]
    assert "--container-image=nvcr.io#nvidia/pytorch" in (tmp_path / "srun_options").read_text()
    assert not (tmp_path / "asked").read_text().count("--name=")
    done = submit([""], "x", "data/a b", "--slurm", "time=1:00", **container)
    assert done.returncode == 2 and len(tasks()) == 1
    assert "do:     leave --slurm out: this node does all of it" in done.stderr


def test_what_medx_refuses_ends_the_job(submit, tasks):
    done = submit([""], "x", "data/a b", MEDX_ENDS="2")
    assert done.returncode == 2 and len(tasks()) == 1


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ((), {}, "found:  no words"),
        (("x",), {}, "needed: source and output first"),
        (("--splits", "train=1", "x", "y"), {}, "found:  --splits train=1 x y"),
        (("x", "y"), {"SLURM_JOB_ID": None}, "do:     sbatch slurm/data.sh SOURCE OUT"),
        (("x", "y"), {"MEDX_CLUSTER": "moon"}, "no slurm/clusters/moon.env in"),
        (("x", "y"), {"SLURM_SUBMIT_DIR": "/usr"}, "/usr is no checkout: no slurm/job.bash"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_submitted(submit, tasks, words, changes, message):
    done = submit([], *words, **changes)
    assert done.returncode == 2
    assert message in done.stderr
    assert not tasks()


def test_the_examples_are_commands_of_medx(request):
    """Each `sbatch ... data.sh WORDS` of the script's head parses."""
    text = (request.config.rootpath / "slurm" / "data.sh").read_text()
    examples = [line.split("data.sh ")[1] for line in text.splitlines() if line.startswith("#     sbatch")]
    assert len(examples) == 3
    for example in examples:
        assert cli._parser().parse_args(["data", "build", *shlex.split(example, comments=True)])
