"""slurm/convert.sh with stand-ins for Slurm's programs: what is run, on how many workers, and what is verified."""

import shlex

import pytest

from megatron_medx import cli

VERIFY = ["convert", "verify", "runs/a", "hf/a b"]


@pytest.fixture
def submit(submit_script):
    """Function (words, **environment) -> the finished slurm/convert.sh, whose conversions end as MEDX_ENDS says."""
    job = {"SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "5", "MEDX_ENDS": "0"}
    return lambda *words, **changes: submit_script("convert.sh", words, **(job | changes))


def commands(tasks):
    return [words for words, _, _ in tasks()]


@pytest.mark.parametrize("direction", ["to-hf", "to-megatron"])
def test_a_conversion_takes_the_tasks_cpus_and_is_verified(submit, tasks, tmp_path, direction):
    done = submit(direction, "runs/a", "hf/a b", "--shard-size", "50MB")
    assert done.returncode == 0, done.stderr
    converted = ["convert", direction, "runs/a", "hf/a b", "--shard-size", "50MB", "--workers", "5"]
    assert commands(tasks) == [converted, VERIFY]
    for _, environment, folder in tasks():
        assert folder == str(tmp_path / "checkout")
        assert environment["SRUN_CPUS_PER_TASK"] == "5" and environment["OMP_NUM_THREADS"] == "1"
    assert "job 4711: medx convert" in done.stdout


@pytest.mark.parametrize("workers", [("--workers", "2"), ("--workers=2",)])
def test_workers_that_are_named_stay(submit, tasks, workers):
    assert submit("to-hf", "runs/a", "hf/a b", *workers).returncode == 0
    assert commands(tasks) == [["convert", "to-hf", "runs/a", "hf/a b", *workers], VERIFY]


@pytest.mark.parametrize("option", [("--dtype", "bf16"), ("--only=vision",), ("--vision-from", "b"), ("--dry-run",)])
def test_what_changes_values_is_not_verified(submit, tasks, option):
    done = submit("to-hf", "runs/a", "hf/a", *option)
    assert done.returncode == 0 and len(commands(tasks)) == 1
    assert f"not verified: with {option[0].split('=')[0]} the output is no copy" in done.stdout


def test_verifying_can_be_left_out(submit, tasks):
    assert "not verified: MEDX_VERIFY=0" in submit("to-hf", "runs/a", "hf/a", MEDX_VERIFY="0").stdout
    assert len(commands(tasks)) == 1


def test_a_failure_ends_the_job_with_its_code(submit, tasks):
    assert submit("to-hf", "runs/a", "hf/a", MEDX_ENDS="2").returncode == 2
    assert len(commands(tasks)) == 1


def test_a_job_that_starts_again_goes_on(submit, tasks, tmp_path):
    """Without the output it converts again, which resumes; with it, only verifying is left."""
    out = tmp_path / "checkout" / "out"
    assert submit("to-hf", "runs/a", "out", SLURM_RESTART_COUNT="1").returncode == 0
    assert [words[1] for words in commands(tasks)] == ["to-hf", "verify"]
    out.mkdir()
    done = submit("to-hf", "runs/a", "out", SLURM_RESTART_COUNT="1")
    assert "out is there: the start before this one finished it" in done.stdout
    assert [words[1] for words in commands(tasks)[2:]] == ["verify"]
    submit("to-hf", "runs/a", "out", "--overwrite", SLURM_RESTART_COUNT="1")  # the output may be the old one
    submit("to-hf", "runs/a", "out")  # a first start: medx refuses
    assert [words[1] for words in commands(tasks)[3:]] == ["to-hf", "verify", "to-hf", "verify"]


def test_other_words_of_convert_run_as_they_are(submit, tasks):
    assert submit("average", "hf/mean", "runs/a", "runs/b", "--hf", MEDX_ENDS="1").returncode == 1
    assert commands(tasks) == [["convert", "average", "hf/mean", "runs/a", "runs/b", "--hf"]]


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ((), {}, "found:  no direction"),
        (("to-hf", "runs/a"), {}, "needed: source and output right behind to-hf"),
        (("to-hf", "--dtype", "bf16", "a", "b"), {}, "found:  medx convert to-hf --dtype bf16 a b"),
        (("to-hf", "a", "b"), {"SLURM_JOB_ID": None}, "do:     sbatch slurm/convert.sh to-hf CKPT OUT"),
        (("to-hf", "a", "b"), {"MEDX_CLUSTER": "moon"}, "no slurm/clusters/moon.env in"),
        (("to-hf", "a", "b"), {"PATH": "/usr/bin:/bin"}, "found:  no medx on the PATH"),
        (("to-hf", "a", "b"), {"SLURM_SUBMIT_DIR": "/usr"}, "/usr is no checkout: no slurm/job.bash"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(submit, tasks, words, changes, message):
    done = submit(*words, **changes)
    assert done.returncode == 2
    assert message in done.stderr
    assert not tasks()


def test_the_examples_are_commands_of_medx(request):
    """Each `sbatch ... convert.sh WORDS` of the script's head parses, with what the script adds."""
    text = (request.config.rootpath / "slurm" / "convert.sh").read_text()
    examples = [line.split("convert.sh ")[1] for line in text.splitlines() if line.startswith("#     sbatch")]
    assert len(examples) == 4
    for example in examples:
        words = shlex.split(example, comments=True)
        added = ["--workers", "8"] if words[0].startswith("to-") else []
        assert cli._parser().parse_args(["convert", *words, *added])
