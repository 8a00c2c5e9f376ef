"""The environment that slurm/job.bash enters, the same for every call: a virtual one, pyxis or Apptainer."""

import json

import pytest

HELP = "      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH"
JOB = {"SLURM_GPUS_ON_NODE": "2"}


@pytest.fixture
def image(tmp_path):
    """A file that stands for a container image."""
    path = tmp_path / "medx.sif"
    path.touch()
    return str(path)


@pytest.fixture
def trains(answers):
    """Everything goes well."""
    answers(begin=[[0, "go 4 runs/a\n"]], preflight=[[0, ""]], train=[[0, ""]], next=[[0, "finished\ndone\n"]])


def test_the_virtual_environment_of_the_checkout_is_entered(submit_script, tasks, checkout, trains):
    activate = checkout / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("export ENTERED=yes\n")
    assert submit_script("pretrain.sh", ["demo"], **JOB).returncode == 0
    assert {environment.get("ENTERED") for _, environment, _ in tasks()} == {"yes"}


def test_with_pyxis_every_call_is_a_job_step_in_the_container(
    submit_script, tasks, checkout, trains, image, srun_options
):
    settings = {"MEDX_CONTAINER": image, "MEDX_CONTAINER_MOUNTS": "/data:/data,/scratch:/scratch", "SRUN_HELP": HELP}
    done = submit_script("pretrain.sh", ["demo"], **JOB, **settings)
    assert done.returncode == 0, done.stderr
    container = [
        f"--container-image={image}",
        f"--container-mounts={checkout}:{checkout},/data:/data,/scratch:/scratch",
        f"--container-workdir={checkout}",
    ]
    alone = ["--nodes=1", "--ntasks=1", "--overlap", *container]
    tasks_of_job = [*container, "--gres=gpu:2", "--nodes=2", "--ntasks=4", "--ntasks-per-node=2"]
    assert srun_options() == [alone, tasks_of_job, [*tasks_of_job, "--kill-on-bad-exit=1"], alone]
    assert len(tasks()) == 1 + 4 + 4 + 1


@pytest.mark.parametrize("runtime", [{}, {"MEDX_CONTAINER_RUNTIME": "apptainer", "SRUN_HELP": HELP}])
def test_with_apptainer_every_process_is_one_of_its_own(
    submit_script, tasks, checkout, trains, image, tmp_path, runtime
):
    settings = {"MEDX_CONTAINER": image, "MEDX_CONTAINER_MOUNTS": "/data:/data", **runtime}
    done = submit_script("pretrain.sh", ["demo"], **JOB, **settings)
    assert done.returncode == 0, done.stderr
    assert {environment.get("INSIDE") for _, environment, _ in tasks()} == {"apptainer"}
    lines = (tmp_path / "apptainer").read_text().splitlines()
    assert lines == [f"exec --nv --bind {checkout}:{checkout},/data:/data --pwd {checkout} {image}"] * (1 + 4 + 4 + 1)


def test_in_a_container_the_live_jobs_are_told(submit_script, tasks, trains, image):
    """There is no scontrol inside, which the lock of the run folder would ask."""
    assert submit_script("pretrain.sh", ["demo"], **JOB, MEDX_CONTAINER=image).returncode == 0
    assert {environment["MEDX_LIVE_JOBS"].strip() for _, environment, _ in tasks()} == {"4710 4711"}


def test_an_image_of_a_registry_need_be_no_file(submit_script, trains, tmp_path):
    settings = {"MEDX_CONTAINER": "nvcr.io#ours/medx:1", "SRUN_HELP": HELP}
    assert submit_script("pretrain.sh", ["demo"], **JOB, **settings).returncode == 0
    assert "--container-image=nvcr.io#ours/medx:1" in json.loads(
        (tmp_path / "srun_options").read_text().splitlines()[0]
    )


def test_conversions_run_in_the_container_too(submit_script, image, tmp_path, tasks):
    job = {"SLURM_NTASKS": "1", "MEDX_ENDS": "0"}
    assert submit_script("convert.sh", ["to-hf", "a", "b"], MEDX_CONTAINER=image, **job).returncode == 0
    assert [environment.get("INSIDE") for _, environment, _ in tasks()] == ["apptainer"] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MEDX_CONTAINER": "/none.sqsh"}, "found:  MEDX_CONTAINER=/none.sqsh, but no such file on "),
        ({"MEDX_CONTAINER": "images/none.sif"}, "found:  MEDX_CONTAINER=images/none.sif, but no such file on "),
        ({"MEDX_CONTAINER": "x#y", "MEDX_CONTAINER_RUNTIME": "docker"}, "found:  MEDX_CONTAINER_RUNTIME=docker"),
    ],
)
@pytest.mark.parametrize("script", ["pretrain.sh", "convert.sh"])
def test_a_container_that_cannot_be_started_is_refused(submit_script, tasks, script, changes, message):
    done = submit_script(script, ["demo"], **JOB, **changes)
    assert done.returncode == 2
    assert message in done.stderr and "needed: " in done.stderr and "do:     " in done.stderr
    assert not tasks()


def test_a_node_without_apptainer_and_pyxis_is_refused(submit_script, tasks, image, tmp_path):
    (tmp_path / "bin" / "apptainer").unlink()
    done = submit_script("pretrain.sh", ["demo"], **JOB, MEDX_CONTAINER=image)
    assert done.returncode == 2 and "but no apptainer on the PATH of" in done.stderr
    assert not tasks()
