"""What runs of slurm/pretrain.sh survive on a real Slurm, beside the same run undisturbed: every bit of every step.

The disturbances are in disturbances.py; they run side by side, from the first test of this file on.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from disturbances import (
    FLOWS,
    SAVE_EVERY,
    a_full_disk,
    a_node_less,
    a_rank_hangs,
    all_ranks_killed_while_saving,
    cancelled_damaged_and_resubmitted,
    crash_loop,
    preempted_and_a_node_lost,
    signalled_and_a_rank_killed,
)
from surviving import assert_nothing_lost, assert_same_steps

pytestmark = pytest.mark.slurm

MEDX = Path(sys.prefix) / "bin" / "medx"
LOSS_TOLERANCE = 1e-5
"""Between numbers of ranks, as in tests/distributed: their sums differ in the last bits."""
IN_TRAINING_LOOP = re.compile(r'megatron/training/training\.py", line \d+ in train\n')
"""In a stack: in a step, or between two of them, where ranks ask one another for signals."""


@pytest.fixture(scope="module")
def flows(lab):
    """All flows, started at once."""
    return {flow: lab.start(flow, num_nodes) for flow, num_nodes in FLOWS.items()}


def status(run) -> tuple[str, dict]:
    """What `medx status` says of a run, to people and as JSON."""
    told = run.folder.parent / f"{run.folder.name}_status.json"
    words = [MEDX, "status", run.folder, "--json", told]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(told.read_text())


def assert_told(run, *words: str) -> None:
    """`medx status` says so."""
    said, report = status(run)
    assert report["state"]["name"] == "finished", said
    assert not [word for word in words if word not in said], said


@pytest.fixture(scope="module")
def signalled(flows):
    return flows[signalled_and_a_rank_killed].result()


def test_a_signal_saves_requeues_and_loses_no_step(signalled, undisturbed):
    run, _ = signalled
    [interrupted, *_] = run.events("interrupted")
    first, second = run.events("launched")[:2]
    assert first["resumed_from"] is None and second["resumed_from"] == interrupted["step"]
    assert 5 <= interrupted["step"] < 2 * SAVE_EVERY, "the step that was held, or one of those after it"
    assert {line["signal"] for line in run.events("signal")} == {"SIGUSR1"}
    assert [line["job"] for line in run.events("job_requeued")] == [run.job.number]
    assert [line["restart"] for line in run.events("job_started")] == [0, 1]
    assert run.job.facts()["Restarts"] == "1"
    assert_same_steps(run, undisturbed)
    assert_told(run, "SIGUSR1")


def test_a_killed_rank_is_started_again_in_the_same_job(signalled, undisturbed):
    run, _ = signalled
    assert assert_nothing_lost(run)[-1] == 2 * SAVE_EVERY, "steps 9 and 10 were done again, no others"
    assert len(run.events("launched")) == 3 and len(run.events("job_started")) == 2
    assert len(run.events("failed")) == 1, run.said()
    assert_same_steps(run, undisturbed)


def test_a_second_job_in_the_folder_is_refused_and_the_first_goes_on(signalled):
    run, intruder = signalled
    facts, said = intruder.facts(), intruder.said()
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0"), said
    assert run.job.number in said and "Traceback" not in said, said
    assert [said.count(part) for part in ("found:", "needed:", "do:")] == [1, 1, 1], said
    assert intruder.number not in {line["job"] for line in run.events("job_started")}


@pytest.fixture(scope="module")
def preempted(flows):
    return flows[preempted_and_a_node_lost].result()


def test_a_preempted_run_saves_in_its_grace_and_goes_on(preempted, undisturbed):
    first, second = preempted.events("launched")[:2]
    [interrupted] = preempted.events("interrupted")[:1]
    assert {line["signal"] for line in preempted.events("signal")} >= {"SIGTERM"}
    assert first["resumed_from"] is None and second["resumed_from"] == interrupted["step"] >= 5
    assert_same_steps(preempted, undisturbed)
    assert_told(preempted, "SIGTERM")


def test_a_lost_node_costs_the_steps_since_the_last_save(preempted, undisturbed):
    assert assert_nothing_lost(preempted)[-1] == 2 * SAVE_EVERY, "steps 9 and 10 were done again, no others"
    assert int(preempted.job.facts()["Restarts"]) == 2, "requeued by the preemption and for the lost node"
    assert [line["restart"] for line in preempted.events("job_started")] == [0, 1, 2]
    assert_same_steps(preempted, undisturbed)


def test_an_elastic_run_goes_on_with_a_node_less(flows, undisturbed):
    run = flows[a_node_less].result()
    [changed] = run.events("ranks_changed")
    assert (changed["before"], changed["now"]) == (4, 2)
    assert [line["ranks"] for line in run.events("launched")] == [4, 2]
    assert run.events("launched")[1]["resumed_from"] == run.events("interrupted")[0]["step"]
    assert_same_steps(run, undisturbed, keys=("samples_crc", "tokens", "lr"))
    losses = list(zip(run.column("loss"), undisturbed.column("loss"), strict=True))
    assert all(abs(loss - other) <= LOSS_TOLERANCE for loss, other in losses), losses


def test_ranks_killed_during_saves_go_on_from_the_newest_whole_checkpoint(flows, undisturbed_on_one_node):
    run, found = flows[all_ranks_killed_while_saving].result()
    launches = run.events("launched")
    assert len(launches) == len(found) + 1 and len(run.events("job_started")) == 1
    for (before, during, newest), launch in zip(found, launches[1:], strict=True):
        assert newest in (before, during) and launch["resumed_from"] == (newest or None), run.said()
    assert_same_steps(run, undisturbed_on_one_node)


def test_a_hung_rank_is_noticed_its_stacks_kept_and_the_run_goes_on(flows, undisturbed_on_one_node):
    run = flows[a_rank_hangs].result()
    hangs = run.events("hang")
    assert hangs and min(line["waited_s"] for line in hangs) >= 15, run.said()
    stacks = [path.read_text() for path in run.folder.glob("logs/stacks_rank_*.txt")]
    assert stacks and IN_TRAINING_LOOP.search(stacks[0]), stacks
    assert [line["resumed_from"] for line in run.events("launched")] == [None, SAVE_EVERY], run.said()
    assert_same_steps(run, undisturbed_on_one_node)
    assert_told(run, "hang")


@pytest.fixture(scope="module")
def cancelled(flows):
    return flows[cancelled_damaged_and_resubmitted].result()


def test_a_run_that_its_user_cancelled_stays_so_until_it_is_submitted_again(cancelled, undisturbed_on_one_node):
    state, _, _, run = cancelled
    assert state == "CANCELLED"
    assert run.job.facts()["Restarts"] == "0"
    jobs = [line["job"] for line in run.events("job_started")]
    assert len(jobs) == len(set(jobs)) == 2, "neither was requeued"
    assert_same_steps(run, undisturbed_on_one_node)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_resumed_from(cancelled, undisturbed_on_one_node):
    _, _, newest, run = cancelled
    [damaged] = run.events("checkpoint_damaged")
    assert damaged["step"] == int(newest.name.removeprefix("iter_"))
    assert (newest.parent / f"damaged-{newest.name}").is_dir() and f"damaged-{newest.name}" in run.job.said()
    before = max(line["step"] for line in run.events("saved") if line["step"] < damaged["step"])
    assert run.events("launched")[-1]["resumed_from"] == before
    assert_same_steps(run, undisturbed_on_one_node)
    assert_told(run, "damaged")


@pytest.mark.parametrize(
    ("name", "words"),
    [("another recipe", ("model.ffn_hidden_size", "120", "240")), ("other ranks", ("training.elastic=true",))],
)
def test_a_job_that_does_not_fit_the_run_is_refused_before_it_trains(cancelled, name, words):
    _, refused, _, run = cancelled
    job = refused[name].job
    said = job.said()
    assert job.facts()["ExitCode"] == "2:0", said
    assert not [word for word in words if word not in said], said
    assert [said.count(part) for part in ("found:", "needed:", "do:")] == [1, 1, 1], said
    assert job.number not in {line["job"] for line in run.events("launched", "job_started") if "job" in line}


def test_a_full_disk_stops_the_job_with_advice_and_loses_only_its_save(flows, undisturbed_on_one_node):
    outcome = flows[a_full_disk].result()
    if outcome is None:
        pytest.skip("mounting a tmpfs is not permitted here")
    (facts, said, saved), run = outcome
    assert facts["ExitCode"] == "2:0" and "no space left" in said and "Traceback" not in said, said
    assert saved == str(SAVE_EVERY)
    assert run.events("launched")[-1]["resumed_from"] == SAVE_EVERY
    assert_same_steps(run, undisturbed_on_one_node)


def test_a_run_that_fails_again_and_again_is_given_up(flows):
    run = flows[crash_loop].result()
    [gave_up] = run.events("gave_up")
    assert gave_up["failures"] == 2 and len(run.events("launched")) == 2
    assert run.job.facts()["JobState"] == "FAILED" and run.job.facts()["Restarts"] == "0"
    assert not run.metrics()
    said, report = status(run)
    assert report["state"]["name"] not in ("finished", "running"), said


def test_every_run_was_checked_before_its_first_step(signalled, preempted):
    for run in (signalled[0], preempted):
        assert len(run.events("preflight_passed")) >= len(run.events("job_started"))
        assert all(len(line["hosts"]) == 2 for line in run.events("preflight_passed")), run.said()
