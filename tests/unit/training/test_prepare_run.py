"""Which folder a run gets, what lies in it, and what a resume refuses."""

import copy
import os
import socket
import threading

import pytest

from megatron_medx.config.checkpoint_folders import TRACKER_FILE
from megatron_medx.config.files import read_run_yaml, write_run_yaml
from megatron_medx.errors import CheckpointError, ConfigError, ParallelismError
from megatron_medx.run_folder.names import LOGS
from megatron_medx.training.launch import launch
from megatron_medx.training.local_ranks import free_port
from megatron_medx.training.prepare_run import prepare_folder
from megatron_medx.training.slurm_task import PREPARED_FILE, wait_until_told


def prepare(config, resume=False):
    return prepare_folder(config, resume, ["medx", "train"])


@pytest.fixture
def finished(tiny_run, save_at):
    """A folder as a run leaves it."""
    folder = prepare(tiny_run)
    save_at(folder / "checkpoints", 5)
    return folder


def test_a_new_folder_holds_the_configuration_and_the_processor(tiny_run):
    folder = prepare(tiny_run)
    assert read_run_yaml(folder / "run.yaml") == read_run_yaml(folder / "checkpoints" / "run.yaml") == tiny_run
    assert (folder / "checkpoints" / "processor" / "tokenizer.json").is_file()
    assert "command: medx train" in (folder / "run.yaml").read_text()


def test_what_is_validated_is_settled_before_the_ranks_start(tiny_run, save_at):
    tiny_run.data.validation_path, tiny_run.training.validate_every_steps = tiny_run.data.path, 5
    tiny_run.data.validation_sets = {"again": tiny_run.data.path}
    folder = prepare(tiny_run)
    assert read_run_yaml(folder / "run.yaml").data.validation_sets == {"again": tiny_run.data.path}
    assert all((folder / "data" / "validation" / name / "0.npy").is_file() for name in ("validation", "again"))
    save_at(folder / "checkpoints", 5)
    tiny_run.training.validate_rows = 7
    with pytest.raises(ConfigError, match="would be validated on other rows"):
        prepare(tiny_run, resume=True)


def test_without_a_name_runs_are_numbered_and_the_newest_is_resumed(tiny_run, save_at, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        tiny_run.run.folder = ""
        folders.append(str(prepare(tiny_run)))
    assert folders == ["runs/demo", "runs/demo-2", "runs/demo-3"]
    tiny_run.run.folder = ""
    save_at(tmp_path / "runs/demo-3/checkpoints", 5)
    assert str(prepare(tiny_run, resume=True)) == "runs/demo-3"


def test_a_folder_that_holds_a_run_is_not_entered(tiny_run, finished):
    with pytest.raises(ConfigError, match="already holds a run"):
        prepare(tiny_run)


def test_resuming_needs_a_checkpoint(tiny_run):
    prepare(tiny_run)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        prepare(tiny_run, resume=True)


def test_resuming_goes_on_from_the_checkpoint_before_a_damaged_one(tiny_run, finished, save_at, capfd):
    """The terminal names the file and the step; with all damaged nothing is prepared."""
    checkpoints = finished / "checkpoints"
    save_at(checkpoints, 10)
    (checkpoints / "iter_0000010" / "__0_0.distcp").unlink()
    assert prepare(tiny_run, resume=True) == finished
    said = capfd.readouterr().err
    assert "WARNING" in said and "iter_0000010 is damaged" in said and "__0_0.distcp is missing" in said
    assert "resuming from step 5" in said and (checkpoints / TRACKER_FILE).read_text() == "5"
    (checkpoints / "iter_0000005" / "__0_0.distcp").unlink()
    with pytest.raises(
        CheckpointError, match="no sound checkpoint; damaged: damaged-iter_0000005, damaged-iter_000001"
    ):
        prepare(tiny_run, resume=True)


def test_checksums_that_are_off_are_not_looked_at(tiny_run, finished):
    (finished / "checkpoints" / "iter_0000005" / "integrity.json").write_text("{")
    tiny_run.checkpoint.checksums = False
    assert prepare(tiny_run, resume=True) == finished
    tiny_run.checkpoint.checksums = True
    with pytest.raises(CheckpointError, match="no sound checkpoint"):
        prepare(tiny_run, resume=True)


def test_resuming_another_network_is_refused_with_both_values(tiny_run, finished):
    tiny_run.model.num_layers = 6
    with pytest.raises(CheckpointError, match=r"model\.num_layers 4 in the checkpoint and 6 asked for"):
        prepare(tiny_run, resume=True)


@pytest.mark.parametrize(
    ("section", "field", "value"), [("data", "packing", True), ("data", "sample_align_tokens", 8), ("run", "seed", 99)]
)
def test_resuming_with_another_order_of_data_is_refused(tiny_run, finished, section, field, value):
    setattr(getattr(tiny_run, section), field, value)
    with pytest.raises(ConfigError, match=rf"would see other data: {section}\.{field} was .* and is {value}"):
        prepare(tiny_run, resume=True)


def test_another_grid_and_more_steps_are_welcome(tiny_run, finished):
    tiny_run.parallel.world_size, tiny_run.parallel.pipeline, tiny_run.training.steps = 2, 2, 999
    assert prepare(tiny_run, resume=True) == finished


def test_a_port_in_use_is_refused(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(ParallelismError, match="cannot be used"):
            free_port()
    monkeypatch.delenv("MASTER_PORT")
    assert free_port() > 0


def test_srun_must_start_one_task_a_rank(tiny_run, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ | {"SLURM_PROCID": "0", "SLURM_NTASKS": "3"})
    with pytest.raises(ParallelismError, match="srun started 3 tasks, the run is for 1 ranks"):
        launch(tiny_run)


@pytest.fixture
def first_task(monkeypatch):
    """This process as task 0 of 1 that srun started; training itself is left out."""
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
    monkeypatch.setattr(os, "environ", os.environ | slurm)
    monkeypatch.setattr("megatron_medx.training.worker.run_rank", lambda config, folder, resume: 0)


def test_a_slurm_task_does_not_enter_a_folder_that_holds_a_run_either(tiny_run, finished, first_task):
    os.environ["MASTER_ADDR"] = "localhost"
    with pytest.raises(ConfigError, match="already holds a run"):
        launch(tiny_run)
    assert launch(tiny_run, resume=True) == 0


def test_other_slurm_tasks_wait_for_the_first_and_take_what_it_wrote(tiny_run, monkeypatch, tmp_path):
    """The folder is prepared for another attempt first, then, a second later, for this one."""
    slurm = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "3"}
    monkeypatch.setattr(os, "environ", os.environ | slurm | {"MASTER_ADDR": "localhost"})
    started = []
    monkeypatch.setattr("megatron_medx.training.worker.run_rank", lambda config, *_: started.append(config) or 0)
    tiny_run.parallel.world_size = tiny_run.parallel.tensor = 2
    decided = copy.deepcopy(tiny_run)
    decided.checkpoint.start_from = "what/the/first/task/chose"
    mark = tmp_path / "run" / LOGS / PREPARED_FILE
    mark.parent.mkdir(parents=True)
    mark.write_text("7.0.2 new")

    def prepare_late():
        write_run_yaml(decided, tmp_path / "run" / "run.yaml", {})
        mark.write_text("7.0.3 resumed")

    timer = threading.Timer(1.0, prepare_late)
    timer.start()
    assert launch(tiny_run) == 0
    assert not timer.is_alive() and started == [decided]


def test_a_slurm_task_does_not_wait_forever(tmp_path):
    with pytest.raises(CheckpointError, match=r"logs/prepared has not appeared for 0\.1 s"):
        wait_until_told([tmp_path / LOGS / PREPARED_FILE], "7.0.0", patience_s=0.1)


def test_a_slurm_task_needs_a_meeting_place(tiny_run, first_task):
    os.environ.pop("MASTER_ADDR", None)
    with pytest.raises(ParallelismError, match="without MASTER_ADDR"):
        launch(tiny_run)
