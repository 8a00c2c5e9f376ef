"""What a launcher does when its ranks have ended, and where an automatic resume begins."""

import os
import signal

import pytest

from megatron_medx.config.files import write_run_yaml
from megatron_medx.errors import ConfigError, DataError, ParallelismError
from megatron_medx.run_folder import events
from megatron_medx.run_folder.events import AGAIN, INTERRUPTED
from megatron_medx.training import launch as launching
from megatron_medx.training.interruption import FAILURE_MARK, SIGNALS
from megatron_medx.training.launch import GAVE_UP, launch
from megatron_medx.training.local_ranks import Ending
from megatron_medx.training.prepare_run import holds_checkpoint, prepare_folder
from megatron_medx.training.slurm_task import PREPARED_FILE, REFUSED_FILE
from megatron_medx.training.watchdog import HANG_MARK


@pytest.fixture
def started(monkeypatch):
    """Ranks that end as `endings` says; each start is kept as (resume, whether signals are collected)."""
    starts, endings = [], []

    def run_ranks(folder, world_size, resume, received):
        os.kill(os.getpid(), signal.SIGUSR1)
        starts.append((resume, list(received) == [signal.SIGUSR1]))
        return endings.pop(0)(folder)

    monkeypatch.setattr(launching, "run_ranks", run_ranks)
    return starts, endings


def hung(folder):
    events.append(folder, "hang", step=3, waited_s=9.0, median_s=0.1, rank=0, host="a")
    return Ending(AGAIN, silent=(1,))


def names(folder):
    return [event["event"] for event in events.read(folder)]


def test_ranks_that_hung_start_again_until_that_leads_nowhere(tiny_run, started, capsys):
    starts, endings = started
    tiny_run.survival.max_failures = 2
    endings += [hung, hung]
    assert launch(tiny_run) == GAVE_UP
    assert starts == [(False, True), (False, True)]
    assert names(tiny_run.run_folder) == ["launched", "hang", "launched", "hang", "gave_up"]
    said = capsys.readouterr()
    assert "rank 1 did not end by itself" in said.out and "gave up: 2 launches" in said.err
    assert not (tiny_run.run_folder / "lock.json").exists()
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_DFL}


def test_ranks_that_start_again_go_on_from_what_was_saved_meanwhile(tiny_run, started, save_at):
    starts, endings = started

    def save_and_hang(folder):
        (folder / "logs" / HANG_MARK).touch()
        (folder / "logs" / FAILURE_MARK).touch()
        save_at(folder / "checkpoints", 2)
        return hung(folder)

    endings += [save_and_hang, lambda folder: Ending(0)]
    assert launch(tiny_run) == 0 and [resume for resume, _ in starts] == [False, True]
    assert [event["resumed_from"] for event in events.read(tiny_run.run_folder) if "resumed_from" in event] == [None, 2]
    assert not (tiny_run.run_folder / "logs" / HANG_MARK).exists(), "the next launch may tell of one, too"
    assert not (tiny_run.run_folder / "logs" / FAILURE_MARK).exists()


def test_a_failure_is_recorded_with_the_rank_to_blame(tiny_run, started):
    started[1].append(lambda folder: Ending(1, rank=3, rank_code=-9, why="killed by SIGKILL"))
    assert launch(tiny_run) == 1
    failed = events.read(tiny_run.run_folder)[-1]
    assert (failed["event"], failed["rank"], failed["code"], failed["why"]) == ("failed", 3, -9, "killed by SIGKILL")


def test_an_interrupted_run_says_how_it_goes_on(tiny_run, started, capsys):
    started[1].append(lambda folder: Ending(INTERRUPTED))
    assert launch(tiny_run) == INTERRUPTED
    assert f"medx train {tiny_run.run_folder}/run.yaml --auto-resume" in capsys.readouterr().out


def test_a_refused_run_leaves_no_folder(tiny_run, started):
    tiny_run.data.path = str(tiny_run.run_folder)
    with pytest.raises(DataError, match="lacks tokenizer"):
        launch(tiny_run)
    assert not tiny_run.run_folder.exists()


def test_a_run_without_a_checkpoint_begins_in_its_folder(tiny_run):
    folder = prepare_folder(tiny_run, False, ["medx"])
    assert not holds_checkpoint(tiny_run)
    (folder / "checkpoints" / "iter_0000003").mkdir()  # a save that was cut off
    assert not holds_checkpoint(tiny_run)
    tiny_run.parallel.world_size = tiny_run.parallel.pipeline = 2
    tiny_run.survival.max_failures = 9
    assert prepare_folder(tiny_run, False, ["medx"], re_enter=True) == folder
    assert not (folder / "checkpoints" / "iter_0000003").exists()


def test_another_run_does_not_begin_in_the_folder_of_one_without_a_checkpoint(tiny_run, started):
    folder = prepare_folder(tiny_run, False, ["medx"])
    tiny_run.run.seed = 77
    with pytest.raises(ConfigError, match=r"run\.seed 1234 in the folder and 77(.|\n)*remove .*run\.yaml: nothing is"):
        launch(tiny_run, auto_resume=True)
    assert not started[0] and not (folder / "lock.json").exists()


def test_what_was_saved_is_gone_on_from(tiny_run, started, save_at):
    folder = prepare_folder(tiny_run, False, ["medx"])
    save_at(folder / "checkpoints", 5)
    assert holds_checkpoint(tiny_run)
    started[1].append(lambda folder: Ending(0))
    assert launch(tiny_run, auto_resume=True) == 0 and started[0][0][0] is True
    assert events.read(folder)[-1]["resumed_from"] == 5


@pytest.fixture
def task(monkeypatch):
    """Makes this process a task of srun; its rank only keeps what it was started with."""
    ranks = []
    monkeypatch.setattr(
        "megatron_medx.training.worker.run_rank", lambda config, folder, resume: ranks.append(resume) or 0
    )

    def be(rank):
        slurm = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
        more = {"SLURM_STEP_ID": "1", "SLURM_STEP_NODELIST": "node[1-2]", "MASTER_ADDR": "localhost"}
        monkeypatch.setattr(os, "environ", os.environ | slurm | more)

    return be, ranks


def test_all_tasks_of_srun_follow_what_the_first_one_decided(tiny_run, task, save_at):
    be, ranks = task
    tiny_run.parallel.world_size = tiny_run.parallel.tensor = 2
    for resumes in (False, True):
        for rank in (0, 1):
            be(rank)
            assert launch(tiny_run, auto_resume=True) == 0
        assert ranks == [resumes] * 2
        ranks.clear()
        if not resumes:
            save_at(tiny_run.run_folder / "checkpoints", 5)
    told = events.read(tiny_run.run_folder)
    assert [event["resumed_from"] for event in told] == [None, 5] and told[0]["hosts"] == ["node[1-2]"]
    assert (tiny_run.run_folder / "lock.json").exists(), "the job keeps it"


def test_a_refusal_is_said_by_the_first_task_alone(tiny_run, task):
    be, ranks = task
    tiny_run.parallel.world_size = tiny_run.parallel.tensor = 2
    write_run_yaml(tiny_run, tiny_run.run_folder / "run.yaml", {})
    be(0)
    with pytest.raises(ConfigError, match="already holds a run"):
        launch(tiny_run)
    assert (tiny_run.run_folder / "logs" / REFUSED_FILE).exists()
    assert not (tiny_run.run_folder / "logs" / PREPARED_FILE).exists()
    be(1)
    assert launch(tiny_run) == 2 and not ranks
    tiny_run.parallel.world_size = 4
    assert launch(tiny_run) == 2
    be(0)
    with pytest.raises(ParallelismError, match="srun started 2 tasks, the run is for 4 ranks"):
        launch(tiny_run)
