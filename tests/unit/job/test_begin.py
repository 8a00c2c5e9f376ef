"""What a job refuses before ranks start, what it writes down when it starts them, and how many it starts."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_medx.config.files import write_run_yaml
from megatron_medx.errors import ConfigError, ParallelismError
from megatron_medx.job.begin import begin_job, check_job
from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder import events, lock
from megatron_medx.run_folder.same_run import changes


@pytest.fixture(autouse=True)
def in_a_job(monkeypatch):
    """Job 17, its first start; job 16 is over, all others live."""
    for name in ("SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    monkeypatch.setenv(lock.LIVE_JOBS, "17 18")


@pytest.fixture
def requeued(monkeypatch):
    """Function: the same job starts again."""
    return lambda: monkeypatch.setenv("SLURM_RESTART_COUNT", "1")


@pytest.fixture
def config(tmp_path):
    """The demo of 240 steps, 8 rows each, made for 2 ranks that share a model, with data that look whole."""
    (tmp_path / "data" / "processor").mkdir(parents=True)
    (tmp_path / "data" / "manifest.json").write_text("{}")
    config = get_recipe("demo")
    config.data.path, config.run.folder = str(tmp_path / "data"), str(tmp_path / "run")
    config.training.global_batch_rows = 8
    return config


@pytest.fixture
def run(config, save_at):
    """Its folder with a run of 4 ranks that has saved step 120."""
    folder = config.run_folder
    began = replace(config, parallel=replace(config.parallel, world_size=4))
    write_run_yaml(began, folder / "run.yaml", {})
    (folder / "checkpoints").mkdir()
    save_at(folder / "checkpoints", 120)
    return folder


def begin(config, tasks=4, tasks_per_node=2, accept_changes=False):
    return begin_job(config, tasks, tasks_per_node, accept_changes)


def told(folder):
    return [(event.pop("event"), event) for event in events.read(folder) if event.pop("time")]


STARTED = ("job_started", {"job": "17", "restart": 0, "tasks": 4, "hosts": "node[1-2]"})


def test_a_new_run_starts_on_all_tasks_in_a_folder_of_its_recipe(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.run.folder = ""
    start = begin(config)
    assert start.config.run_folder == Path("runs/demo-slurm") and start.config.parallel.world_size == 4
    assert not start.is_finished and start.notes == ()
    assert told(tmp_path / "runs" / "demo-slurm") == [STARTED]
    assert lock.is_ours(tmp_path / "runs" / "demo-slurm")


def test_a_run_goes_on_from_its_checkpoint(config, run):
    start = begin(config)
    assert start.notes == (f"{run} goes on from step 120",)
    assert told(run) == [STARTED]


def test_a_requeued_job_keeps_the_folder(config, run, requeued):
    begin(config)
    requeued()
    begin(config)
    assert [facts["restart"] for _, facts in told(run)] == [0, 1]
    assert lock.is_ours(run)


def test_a_folder_in_which_a_job_runs_is_refused(config, run, monkeypatch):
    begin(config)
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    with pytest.raises(ConfigError, match=r"Slurm job 17 holds .*run since .*\nneeded: one writer for a run folder"):
        begin(config)
    assert told(run) == [STARTED]
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(ConfigError, match=r"Slurm job 17 holds .*run\nneeded: one job for a run folder"):
        check_job(config, None, 2, accept_changes=False)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert lock.is_ours(run)


def test_a_job_that_is_being_ended_is_waited_for(config, run, monkeypatch, tmp_path):
    """`scancel`, and at once the same submitted again."""
    begin(config)
    monkeypatch.delenv(lock.LIVE_JOBS)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/bash\necho JobState=COMPLETING\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    sleep, over = time.sleep, "#!/bin/bash\necho JobState=CANCELLED\n"  # subprocess sleeps as well
    monkeypatch.setattr(lock.time, "sleep", lambda s: scontrol.write_text(over) if s == lock.ASK_AGAIN_S else sleep(s))
    begin(config)
    assert [name for name, _ in told(run)] == ["job_started", "lock_taken_over", "job_started"]


def test_of_a_dead_job_the_folder_is_taken_over(config, run, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "16")
    begin(config)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    begin(config)
    assert [name for name, _ in told(run)] == ["job_started", "lock_taken_over", "job_started"]


def test_another_recipe_in_the_folder_is_refused_with_what_differs(config, run):
    config.optimizer.lr, config.run.seed = 1e-3, 5
    with pytest.raises(ConfigError) as hit:
        begin(config)
    said = str(hit.value)
    assert f"found:  {run} holds a run of another configuration:\n" in said
    assert "  run.seed 1234 in the folder and 5 asked for\n" in said
    assert "  optimizer.lr 0.002 in the folder and 0.001 asked for\n" in said
    assert "another run.folder" in said and "--accept-changes" in said
    assert not (run / "lock.json").exists() and told(run) == []


def test_of_a_hundred_differences_some_are_shown(config, run):
    other = get_recipe("align_8b")
    other.run.folder, other.data.path, other.training.global_batch_rows = str(run), config.data.path, 512
    other.checkpoint.start_from = ""
    with pytest.raises(ConfigError, match=r"  and \d+ more\n"):
        begin(other)


def test_changes_can_be_accepted(config, run):
    config.optimizer.lr = 1e-3
    start = begin(config, accept_changes=True)
    assert start.config.optimizer.lr == 1e-3
    [(_, facts)] = told(run)
    assert facts["accepted"] == ["optimizer.lr 0.002 in the folder and 0.001 asked for"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parallel.pipeline", 2),
        ("checkpoint.every_steps", 7),
        ("survival.max_failures", 9),
        ("log.every_steps", 5),
        ("data.num_workers", 3),
        ("training.recompute", "full"),
        ("training.on_bad_loss", "rollback"),
        ("training.steps", 500),
        ("training.validate_every_steps", 120),
        ("data.validation_path", "split/val"),
        ("data.validation_sets", {"chest": "split/chest"}),
    ],
)
def test_where_how_fast_and_how_safely_may_change(config, key, value):
    former = get_recipe("demo")
    section, field = key.split(".")
    setattr(getattr(config, section), field, value)
    former.run.folder = "elsewhere"
    former.data.path, former.training.global_batch_rows = config.data.path, 8
    assert changes(former, config) == []


@pytest.mark.parametrize(
    ("used", "asked", "same"),
    [
        ("runs/align/checkpoints/iter_0000100", "runs/align", True),
        ("runs/align/checkpoints/iter_0000100", "runs/align/checkpoints/iter_0000100", True),
        ("runs/align/checkpoints/iter_0000100", "runs/other", False),
        ("runs/align/checkpoints/iter_0000100", "", False),
        ("", "runs/align", False),
    ],
)
def test_what_a_run_started_from_is_written_down_more_precisely(config, used, asked, same):
    former = replace(config, checkpoint=replace(config.checkpoint, start_from=used))
    config.checkpoint.start_from = asked
    assert (changes(former, config) == []) == same


def test_steps_may_grow_and_not_shrink(config):
    former = replace(config, training=replace(config.training, steps=300))
    assert changes(former, config) == ["training.steps 300 in the folder and 240 asked for"]


def test_a_finished_run_is_refused_to_who_submits_it_anew(config, run, save_at):
    save_at(run / "checkpoints", 240)
    with pytest.raises(ConfigError, match=r"is finished: step 240 of 240.*\n.*\n.*training\.steps=480"):
        begin(config)
    config.training.steps = 480
    assert begin(config).notes == (f"{run} goes on from step 240",)


def test_a_requeued_job_that_finds_its_run_finished_is_done(config, run, save_at, requeued):
    begin(config)
    save_at(run / "checkpoints", 240)
    requeued()
    start = begin(config)
    assert start.is_finished
    assert told(run)[-1] == ("job_ended", {"job": "17", "code": 0, "why": "the run was finished before"})
    assert not (run / "lock.json").exists()


def test_a_requeued_job_that_is_refused_says_so_in_the_run(config, run, requeued, tmp_path):
    begin(config)
    (tmp_path / "data" / "manifest.json").unlink()
    requeued()
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        begin(config)
    name, facts = told(run)[-1]
    assert name == "job_ended" and facts["code"] == 2 and "manifest.json" in facts["why"]
    assert not (run / "lock.json").exists()


@pytest.mark.parametrize(("tasks", "fits"), [(2, "--nodes=2"), (6, "--nodes=2")])
def test_another_number_of_tasks_is_refused(config, run, tasks, fits):
    with pytest.raises(ParallelismError, match=rf"{tasks} tasks of 2 a node, the run has 4 ranks") as hit:
        begin(config, tasks=tasks)
    assert fits in str(hit.value) and "training.elastic=true" in str(hit.value)


@pytest.mark.parametrize(
    ("tasks", "ranks", "idle"),
    [(2, 2, 0), (3, 2, 1), (4, 4, 0), (6, 4, 2), (12, 8, 4), (16, 16, 0), (40, 16, 24)],
)
def test_an_elastic_run_takes_the_most_ranks_that_keep_the_global_batch(config, run, tasks, ranks, idle):
    """8 rows, two ranks a replica: 1, 2, 4 or 8 replicas."""
    config.training.elastic = True
    start = begin(config, tasks=tasks)
    assert start.config.parallel.world_size == ranks
    assert start.config.training.global_batch_rows == 8
    changed = [facts for name, facts in told(run) if name == "ranks_changed"]
    assert changed == ([{"before": 4, "now": ranks}] if ranks != 4 else [])
    assert any(f"{idle} of {tasks} GPUs stay idle" in note for note in start.notes) == (idle > 0)


def test_an_elastic_run_needs_a_whole_model(config, run):
    config.training.elastic = True
    with pytest.raises(ParallelismError, match=r"1 tasks; tensor 2 .*\nneeded: at least 2 tasks"):
        begin(config, tasks=1, tasks_per_node=1)


@pytest.mark.parametrize(
    ("tasks", "per_node", "do"), [(6, 2, "--nodes=1)"), (8, 8, "--nodes=1 and MEDX_GPUS_PER_NODE=2)")]
)
def test_a_first_start_that_cannot_keep_the_global_batch_is_refused(config, tasks, per_node, do):
    config.training.global_batch_rows = 2
    with pytest.raises(ParallelismError, match=f"found:  {tasks} tasks, the recipe is for 2; training.global") as hit:
        begin(config, tasks=tasks, tasks_per_node=per_node)
    assert f"do:     submit 2 tasks ({do}, or set training.global_batch_rows=" in str(hit.value)


def test_what_is_wrong_on_any_number_of_ranks_is_said_as_it_is(config):
    config.training.steps = 0
    with pytest.raises(ConfigError, match=r"found:  training\.steps is 0"):
        begin(config)


@pytest.mark.parametrize(
    ("nodes", "per_node", "submitted", "ranks"), [(None, 2, 1, 2), (None, 1, 2, 2), (2, 2, 2, 4), (4, 2, 4, 8)]
)
def test_the_login_node_works_out_the_nodes(config, nodes, per_node, submitted, ranks, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID")
    start, number = check_job(config, nodes, per_node, accept_changes=False)
    assert (number, start.config.parallel.world_size) == (submitted, ranks)
    assert not config.run_folder.exists()


def test_the_login_node_goes_by_the_ranks_of_the_run(config, run):
    assert check_job(config, None, 2, accept_changes=False)[1] == 2
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "run.yaml"]
