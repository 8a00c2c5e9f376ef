"""The state of a run, by its events and its signs of life; and of an old run, by its files alone."""

import json

import pytest
from crafted_run import STARTED

from megatron_medx.config.files import write_run_yaml
from megatron_medx.status.state import PATIENCE_S, REACTION_S, START_PATIENCE_S, STATES

JOB = {"job": "12", "restart": 0, "tasks": 2, "hosts": ["node1", "node2"]}
LAUNCH = {"ranks": 2, "hosts": ["node1", "node2"], "resumed_from": None}


def begun(run):
    """A job whose ranks have done steps: to step 60 at second 100."""
    run.event("job_started", 1, **JOB)
    run.event("preflight_passed", 10, hosts=["node1", "node2"], took_s=9.0)
    run.event("launched", 12, **LAUNCH)
    run.event("first_step", 20, step=1, start_s=8.0)
    run.metrics(60, 100)


def test_a_job_goes_through_its_states(run):
    run.event("job_started", 1, **JOB)
    assert run.state(5) == "preflight" and "job 12 has begun" in run.row("state", 5)
    run.event("preflight_passed", 10, hosts=["node1", "node2"], took_s=9.0)
    assert run.state(11) == "starting" and "the nodes passed" in run.row("state", 11)
    run.event("launched", 12, **LAUNCH)
    assert run.state(15) == "starting" and "no step of this start is done yet" in run.row("state", 15)
    run.event("first_step", 20, step=1, start_s=8.0)
    run.metrics(60, 100)
    assert run.row("state", 110) == "running: it writes; last written 10 s ago"
    run.event("interrupted", 120, step=60, signal="SIGUSR1")
    assert run.state(121) == "interrupted"
    run.event("job_requeued", 122, job="12", why="the time limit")
    assert run.row("state", 10_000).startswith("queued: job 12 waits in the queue to go on: the time limit; since ")
    run.event("interrupted", 123, step=60, signal="SIGTERM")  # a rank that the requeue ended says so too
    assert run.state(124) == "queued"
    run.event("job_started", 500, **JOB | {"restart": 1})
    assert run.state(510) == "preflight"
    run.event("launched", 512, **LAUNCH | {"resumed_from": 60})
    run.event("first_step", 520, step=61, start_s=8.0)
    run.metrics(240, 600)
    assert "running: the last step is done, its checkpoint is not" in run.row("state", 601)
    run.checkpoint(240, 610)
    run.event("finished", 611, step=240)
    assert run.state(612) == "finished"
    run.event("job_ended", 613, job="12", code=0, why="finished")
    assert run.status(10**6)["state"]["name"] == "finished"


def test_a_folder_that_a_job_has_just_begun(run):
    """events.jsonl, no run.yaml yet."""
    (run.folder / "run.yaml").unlink()
    run.event("job_started", 1, **JOB)
    report = run.status(5)
    assert (report["state"]["name"], report["recipe"], report["steps"], report["num_ranks"]) == (
        "preflight",
        None,
        None,
        2,
    )
    assert run.row("run", 5).endswith("no recipe yet, 2 ranks") and run.row("step", 5) is None
    assert run.row("job", 5).startswith("12, 2 tasks on node1, node2, since 2023-11-14 22:13:21 UTC")
    json.dumps(report, allow_nan=False)
    run.event("lock_taken_over", 2, holder="job 11", why="it is gone")
    assert run.state(5) == "preflight"
    (run.folder / "events.jsonl").unlink()
    run.event("lock_taken_over", 2, holder="job 11", why="it is gone")
    assert run.state(5) == "starting" and "just taken the folder" in run.row("state", 5)


HANG = {"step": 61, "waited_s": 300.0, "median_s": 0.5, "rank": 1, "host": "node2"}
ROLLED_BACK = {"to_step": 40, "from_step": 60, "first_row": 1, "last_row": 8, "why": "3 bad steps"}


@pytest.mark.parametrize(
    ("name", "facts", "words"),
    [
        ("failed", {"step": 60, "code": -9, "rank": 1, "why": "killed"}, "rank 1, code -9: killed; job 12 decides"),
        ("failed", {"step": 60, "code": 1, "rank": None, "why": "srun ended"}, "code 1: srun ended; job 12 decides"),
        ("hang", HANG, "step 61 hung for 300 s, rank 1 on node2; it is started again"),
        ("rolled_back", ROLLED_BACK, "rolled back from step 60 to 40: 3 bad steps; it is started again"),
    ],
)
def test_after_a_failure_a_living_job_starts_again_and_a_job_that_ended_does_not(run, name, facts, words):
    begun(run)
    run.event(name, 110, **facts)
    assert run.row("state", 111).startswith(f"starting: {words}")
    run.event("job_ended", 115, job="12", code=1, why="it may not be requeued")
    assert run.row("state", 116).startswith(f"stopped: {words.split(';')[0]}; since 2023-11-14 22:15:10 UTC")


def test_without_a_job_a_hung_launch_starts_again_by_itself_until_it_gives_up(run):
    run.event("launched", 12, **LAUNCH)
    run.event("first_step", 20, step=1, start_s=8.0)
    run.event("hang", 110, **HANG)
    assert run.state(111) == "starting" and run.state(111 + START_PATIENCE_S) == "stale"
    run.event("gave_up", 112, step=60, failures=3)
    assert run.state(113) == "stopped"


@pytest.mark.parametrize("end", ["job_ended", "job_requeued"])
def test_a_run_that_goes_on_without_its_job(run, end):
    """`medx train RUN/run.yaml --resume` behind a job that was cancelled in the queue, or ended."""
    begun(run)
    run.event(end, 110, job="12", code=1, why="it ended")
    run.event("launched", 200, **LAUNCH)
    assert run.state(201) == "starting"
    run.event("failed", 210, step=60, code=1, rank=0, why="of its own")
    assert run.row("state", 211).startswith("stopped: rank 0, code 1: of its own; since")


def test_a_requeued_job_that_is_refused_has_ended(run):
    begun(run)
    run.event("interrupted", 110, step=60, signal="SIGUSR1")
    run.event("job_requeued", 111, job="12", why="the run saved on a signal")
    run.event("job_ended", 200, job="12", code=2, why="4 tasks of 2 a node, the run has 2 ranks")
    assert run.row("state", 201).startswith("stopped: job 12 ended with code 2: 4 tasks of 2 a node")


def test_a_failure_outside_of_a_job_stops_the_run(run):
    run.event("launched", 12, **LAUNCH)
    run.event("first_step", 20, step=1, start_s=8.0)
    run.metrics(60, 100)
    run.event("failed", 110, step=60, code=-9, rank=1, why="killed")
    assert run.row("state", 111).startswith("stopped: rank 1, code -9: killed; since 2023-11-14 22:15:10 UTC")


def test_what_a_user_must_mend_is_not_started_again(run):
    begun(run)
    run.write("logs/error.txt", "found:  step 61: loss nan in samples a\nneeded: finite\ndo:     look\n", 101)
    assert run.state(102) == "stopped", "the rank has said why, the launch not yet"
    run.event("failed", 110, step=60, code=2, rank=0, why="found:  step 61: loss nan in samples a")
    report = run.status(111)
    assert report["state"]["name"] == "stopped" and report["state"]["error"].startswith("found:  step 61")
    assert run.row("error", 111).splitlines() == report["state"]["error"].splitlines()
    run.event("job_started", 200, **JOB | {"job": "13"})
    assert run.status(201)["state"]["error"] is None, "it is of the start before"


def test_a_run_that_gave_up_is_stopped_and_says_what_its_ranks_said(run):
    begun(run)
    for second in (110, 120, 130):
        run.event("failed", second, step=60, code=1, rank=0, why="ended")
    said = f"{STARTED}Traceback (most recent call last):\n  File x\nRuntimeError: of ours\n"
    run.write("logs/rank_0.log", said, 130)
    run.event("gave_up", 131, step=60, failures=3)
    run.event("job_ended", 132, job="12", code=1, why="gave up")
    assert run.row("state", 140).startswith("stopped: gave up after 3 failures at step 60; since")
    assert run.row("error", 140) == "rank_0.log: RuntimeError: of ours"
    assert "read why its last starts failed" in run.row("needs you", 140)


@pytest.mark.parametrize(
    ("code", "state"),
    [(1, "stopped"), (75, "interrupted"), (0, "stopped")],
    ids=["failed", "saved", "not the last step"],
)
def test_a_job_that_ended_without_a_word_of_its_ranks(run, code, state):
    begun(run)
    run.event("job_ended", 110, job="12", code=code, why="cancelled")
    assert run.row("state", 111).startswith(f"{state}: job 12 ended with code {code}: cancelled")


def test_a_job_with_nothing_left_to_do(run):
    begun(run)
    run.metrics(240, 100)
    run.checkpoint(240, 101)
    run.event("finished", 102, step=240)
    run.event("job_ended", 103, job="12", code=0, why="finished")
    run.event("job_started", 200, **JOB | {"job": "13"})
    run.event("job_ended", 201, job="13", code=0, why="nothing is left to do")
    assert run.state(202) == "finished"


def test_nodes_that_fail_their_preflight_are_named(run):
    run.event("job_started", 1, **JOB)
    problems = ["node2: 7 of 8 GPUs answer"]
    run.event("preflight_failed", 10, problems=problems, hosts=["node2"])
    run.event("job_ended", 11, job="12", code=2, why="preflight")
    assert run.state(12) == "stopped"
    assert run.row("needs you", 12).startswith(
        "preflight: node2: 7 of 8 GPUs answer; leave node2 out (sbatch --exclude)"
    )
    assert run.row("preflight", 12).startswith("FAILED: node2: 7 of 8 GPUs answer; on node2")
    run.event("job_started", 20, **JOB | {"job": "13"})
    run.event("preflight_passed", 30, hosts=["node1"], took_s=8.0)
    assert run.state(31) == "starting" and run.row("needs you", 31) is None
    assert run.row("preflight", 31).startswith("passed in 8 s on node1")


def test_a_finished_run_that_goes_on_for_longer(run):
    begun(run)
    run.metrics(240, 100)
    run.checkpoint(240, 101)
    run.event("finished", 102, step=240)
    run.config.training.steps = 300
    write_run_yaml(run.config, run.folder / "run.yaml", {})
    run.date("run.yaml", 200)
    assert run.row("state", 210).startswith("starting: it is to go on from step 240 to 300")


@pytest.mark.parametrize(
    ("step_time_s", "hang_factor", "patience_s"),
    [(0.5, 0.0, PATIENCE_S), (30.0, 0.0, 600.0), (0.5, 20.0, 300.0 + REACTION_S), (30.0, 25.0, 750.0 + REACTION_S)],
)
def test_running_until_nothing_was_written_for_some_steps(run, step_time_s, hang_factor, patience_s):
    """Where hung steps are looked for, the run is stale only when such a step would have been told of."""
    run.config.survival.hang_factor = hang_factor
    write_run_yaml(run.config, run.folder / "run.yaml", {})
    run.date("run.yaml", 0)
    begun(run)
    run.metrics(60, 100, step_time_s=dict.fromkeys(range(1, 61), step_time_s))
    report = run.status(100 + patience_s)
    assert report["state"]["name"] == "running" and report["state"]["since"] == "2023-11-14T22:15:00+00:00"
    assert report["left"] == {"time_s": 180 * step_time_s, "with_saves": False}
    stale = run.status(101 + patience_s)
    assert stale["state"]["name"] == "stale" and stale["state"]["since"] == "2023-11-14T22:15:00+00:00"
    assert stale["left"] is None
    assert f"stale: nothing was written for longer than {patience_s:.0f} s; before, running" in run.row("state", 10**6)
    assert "`squeue --me`" in run.row("needs you", 10**6)


@pytest.mark.parametrize("name", ["job_started", "preflight_passed", "launched"])
def test_a_start_has_its_own_patience(run, name):
    run.event(name, 5)
    assert run.state(5 + START_PATIENCE_S) in ("preflight", "starting")
    assert run.state(6 + START_PATIENCE_S) == "stale"


@pytest.mark.parametrize("name", ["interrupted", "job_requeued"])
def test_what_waits_does_not_grow_stale(run, name):
    begun(run)
    run.event(name, 110, step=60, signal="SIGTERM", job="12", why="preempted")
    assert run.state(10**7) in ("interrupted", "queued")


@pytest.mark.parametrize(
    "name", ["validation.jsonl", "logs/rank_0.log", "checkpoints/latest_checkpointed_iteration.txt", "events.jsonl"]
)
def test_validation_saves_and_events_are_signs_of_life(run, name):
    begun(run)
    late = 101 + 300 + REACTION_S
    assert run.state(late) == "stale"
    if name == "events.jsonl":
        run.event("saved", 150, step=40, save_s=1.0, bytes=7)
    else:
        run.write(name, "7\n", 150)
    assert run.state(late) == "running"


def test_a_traceback_of_a_stale_run_is_told_of_the_rank_that_fell_first(run):
    def traceback(said):
        return f"{STARTED}Traceback (most recent call last):\n  File x\n{said}\nafter that\n"

    begun(run)
    run.write("logs/rank_0.log", traceback("RuntimeError: Connection closed by peer"), 101)
    run.write("logs/rank_1.log", traceback("torch.OutOfMemoryError: 80 GB"), 102)
    run.write("logs/rank_2.log", traceback("ValueError: of a former start") + STARTED, 90)
    assert run.state(110) == "running"
    assert run.status(5000)["state"]["error"] == "rank_1.log: torch.OutOfMemoryError: 80 GB"


class TestWithoutEvents:
    """Runs of a version that wrote none."""

    def test_a_start(self, run):
        run.write("logs/rank_0.log", STARTED, 5)
        assert run.state(5 + START_PATIENCE_S) == "starting"
        late = run.status(6 + START_PATIENCE_S)["state"]
        assert late["name"] == "stale" and "no step of this start is done yet" in late["why"]

    def test_a_resumed_run_starts_anew(self, run):
        """run.yaml is written by each launch: an old metrics.jsonl is no sign of standing still."""
        run.metrics(60, 100)
        run.date("run.yaml", 5000)
        report = run.status(5000 + START_PATIENCE_S)
        assert report["state"]["name"] == "starting" and report["step"] == 60

    def test_finished_is_the_last_step_saved(self, run):
        run.metrics(240, 100)
        assert "running: the last step is done, its checkpoint is not" in run.row("state", 110)
        killed = run.status(100_000)["state"]
        assert killed["name"] == "stale" and "its checkpoint is not" in killed["why"]
        run.checkpoint(240, 115)
        report = run.status(100_000)
        assert report["state"]["name"] == "finished" and report["checkpoints"]["steps_since"] == 0
        run.config.training.steps = 300  # resumed for longer
        write_run_yaml(run.config, run.folder / "run.yaml", {})
        run.date("run.yaml", 200)
        assert run.state(210) == "starting"

    def test_an_error_is_quoted_whole(self, run):
        run.metrics(60, 100)
        run.write("logs/error.txt", "found:  a\nneeded: b\ndo:     c\n", 101)
        assert run.row("state", 110).startswith("stopped: with an error; since 2023-11-14 22:15:01 UTC")
        assert run.row("error", 110).splitlines() == ["found:  a", "needed: b", "do:     c"]


def test_every_state_is_explained_and_met_in_this_folder(request):
    assert all(STATES.values())
    tests = "".join(path.read_text() for path in request.path.parent.glob("test_*.py"))
    assert not [name for name in STATES if f'"{name}' not in tests]


GATE = {"gap": 0.012, "max_gap": 0.005, "steps": 200}


def test_a_run_that_its_precision_gate_refused_is_stopped(run):
    run.event("job_started", 1, **JOB)
    run.event("precision_gate", 50, passed=False, **GATE)
    assert run.state(60) == "stopped" and "precision_gate.png" in run.row("state", 60)
    assert "NOT passed: gap 1.200% after 200 steps, at most 0.500%" in run.row("gate", 60)


def test_a_run_behind_its_precision_gate_starts(run):
    run.event("precision_gate", 50, passed=True, **GATE)
    assert run.state(60) == "starting" and "gate is passed" in run.row("state", 60)
    run.event("launched", 61, ranks=2, hosts=["node1"], resumed_from=None)
    assert run.state(70) == "starting"


def test_trials_of_a_precision_gate_are_a_sign_of_life(run):
    run.event("preflight_passed", 1, hosts=["node1"], took_s=1.0)
    run.write("precision_gate/bf16/metrics.jsonl", "", 2000)
    assert run.state(2100) == "starting"
    assert run.state(2000 + 901) == "stale"
