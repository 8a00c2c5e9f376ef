"""slurm/pretrain.sh on the login node: what it submits, and what it refuses with nothing queued."""

import subprocess

import pytest

SUBMIT = [0, "run  demo\nsubmit 8 runs/demo-slurm\n"]


@pytest.fixture
def login(checkout, tmp_path):
    """Function (words, **environment) -> the finished slurm/pretrain.sh, typed in the checkout."""
    basics = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "RECORD": str(tmp_path)}

    def run(*words, **changes):
        return subprocess.run(
            ["slurm/pretrain.sh", *words],
            env=basics | changes,
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def submissions(tmp_path):
    """Function () -> the words of each sbatch."""

    def read():
        path = tmp_path / "submissions"
        return path.read_text().splitlines() if path.exists() else []

    return read


def check_words(tasks):
    """Words of the one `medx` that was called."""
    [(words, _, _)] = tasks()
    return words


def test_it_checks_and_submits_itself(login, tasks, answers, submissions):
    answers(check=[SUBMIT])
    done = login("demo", "training.steps=7")
    assert done.returncode == 0, done.stderr
    assert check_words(tasks) == ["job", "check", "demo", "training.steps=7", "--tasks-per-node", "8", "--gpu-gb", "80"]
    line = "--nodes=8 --job-name=medx-demo-slurm slurm/pretrain.sh demo training.steps=7"
    assert submissions() == [f"--test-only {line}", f"--parsable {line}"]
    assert done.stdout.splitlines()[0] == "run  demo" and "submit 8" not in done.stdout
    assert "job 4712 is submitted, 8 nodes; its state: medx status runs/demo-slurm" in done.stdout


def test_options_of_sbatch_come_before_the_recipe(login, tasks, answers, submissions):
    answers(check=[[0, "submit 4 runs/my run\n"]])
    done = login("--nodes=4", "--time=12:00:00", "--hold", "demo", "--accept-changes")
    assert done.returncode == 0, done.stderr
    words = ["job", "check", "demo", "--accept-changes", "--nodes", "4", "--tasks-per-node", "8", "--gpu-gb", "80"]
    assert check_words(tasks) == words
    assert submissions()[1] == (
        "--parsable --nodes=4 --job-name=medx-my run --nodes=4 --time=12:00:00 --hold slurm/pretrain.sh demo "
        "--accept-changes"
    )


def test_with_test_only_everything_is_checked_and_nothing_submitted(login, tasks, answers, submissions):
    answers(check=[SUBMIT])
    done = login("--time=1:00:00", "--test-only", "demo")
    assert done.returncode == 0, done.stderr
    assert check_words(tasks)[:3] == ["job", "check", "demo"]
    assert submissions() == ["--test-only --nodes=8 --job-name=medx-demo-slurm --time=1:00:00 slurm/pretrain.sh demo"]
    assert done.stdout.splitlines()[-1] == "nothing is submitted, 8 nodes would be; its folder: runs/demo-slurm"


@pytest.mark.parametrize(
    ("gres", "changes", "per_node"),
    [
        ("gpu:4", {}, ["4", "--gpu-gb", "80"]),
        ("gpu:a100:4,gpu:t4:1", {"MEDX_GPU_GB": "40"}, ["4", "--gpu-gb", "40"]),
        ("(null)", {}, ["2"]),  # no GPUs: for trying
        ("gpu:4", {"MEDX_GPUS_PER_NODE": "3"}, ["3", "--gpu-gb", "80"]),
    ],
)
def test_gpus_of_a_node_come_from_the_settings_or_from_slurm(login, tasks, answers, tmp_path, gres, changes, per_node):
    answers(check=[SUBMIT])
    done = login("demo", GRES=gres, SBATCH_PARTITION="h100", **changes)
    assert done.returncode == 0, done.stderr
    assert check_words(tasks)[2:] == ["demo", "--tasks-per-node", *per_node]
    asked = "--noheader --format=%G --partition=h100"
    assert changes or (tmp_path / "sinfo").read_text().strip() == asked


def test_the_clusters_file_sets_options_of_sbatch(login, answers, checkout, tmp_path):
    answers(check=[SUBMIT])
    (checkout / "slurm" / "clusters" / "ours.env").write_text("export SBATCH_ACCOUNT=medicine\n: $UNSET\n")
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("'%s\\n' \"$*\"", "'%s\\n' \"$SBATCH_ACCOUNT $*\""))
    assert login("demo", MEDX_CLUSTER="ours").returncode == 0
    assert (tmp_path / "submissions").read_text().startswith("medicine --test-only")


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ([], {}, "found:  no recipe"),
        (["-N", "4", "demo"], {}, "found:  option -N"),
        (["demo", "--resume"], {}, "found:  --resume behind the recipe"),
        (["demo"], {"MEDX_CLUSTER": "moon"}, "no slurm/clusters/moon.env in"),
        (["demo"], {"PATH": "/usr/bin:/bin"}, "found:  no medx on the PATH"),
        (["demo"], {"MEDX_CONTAINER": "/shared/none.sif"}, "found:  MEDX_CONTAINER=/shared/none.sif, but no such file"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_queued(login, tasks, submissions, words, changes, message):
    done = login(*words, **changes)
    assert done.returncode == 2
    assert message in done.stderr and "needed: " in done.stderr and "do:     " in done.stderr
    assert not tasks() and not submissions()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "unknown recipe nonsense"),
        (["demo", "paralel.tensor=2"], "did you mean parallel.tensor"),
        (["demo", "training.global_batch_rows=8"], "no data/demo/manifest.json"),
        (["--nodes=3", "demo"], "found:  24 tasks, the recipe is for 2; training.global_batch_rows 2, data-parallel"),
    ],
)
def test_what_medx_refuses_is_not_queued(login, submissions, words, message):
    """The real `medx job check`."""
    done = login(*words)
    assert done.returncode == 2
    assert message in done.stderr and "needed: " in done.stderr and "do:     " in done.stderr
    assert not submissions()


def test_what_slurm_refuses_is_not_queued(login, answers, submissions):
    answers(check=[SUBMIT])
    says = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    done = login("--account=nobody", "demo", SBATCH_REFUSES=says)
    assert done.returncode == 2
    assert f"--account=nobody: {says}" in done.stderr
    assert "needed: account, partition and nodes that Slurm grants" in done.stderr
    assert "do:     set SBATCH_ACCOUNT" in done.stderr
    assert [words.split()[0] for words in submissions()] == ["--test-only"]
