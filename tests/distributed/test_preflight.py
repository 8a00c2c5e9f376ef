"""The preflight of two hosts with two tasks each, as real processes over gloo: passes, or names who is to blame."""

import ctypes
import dataclasses
import functools
import os
import signal
import threading

import preflight_tasks
import pytest
from preflight_tasks import run_tasks

from megatron_medx.preflight import facts, measure, shared_files, steps
from megatron_medx.run_folder import events


@pytest.fixture
def run(tmp_path):
    """Function (**arguments of run_tasks) -> exit codes, rank 0's screen, seconds, the last event."""

    def start(**arguments):
        folder = tmp_path / "run"
        codes, screen, took_s = run_tasks(folder, **arguments)
        written = events.read(folder)
        return codes, screen, took_s, written[-1] if written else {}

    return start


def test_four_healthy_tasks_pass(run, tmp_path):
    codes, screen, _, event = run()
    assert set(codes.values()) == {0}, screen
    assert "preflight passed" in screen and "2 hosts, 4 tasks, no GPU" in screen
    assert "GB/s inside hosts" in screen and "GB/s between hosts" in screen and "GB/s over all" in screen
    assert event["event"] == "preflight_passed" and event["hosts"] == ["node1", "node2"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["events.jsonl"], "files of hosts are left"
    for rank in range(1, 4):
        assert (tmp_path / f"run_{rank}.txt").read_text() == "", "only rank 0 speaks"


def test_a_task_that_never_comes_is_named_with_its_host(run):
    codes, screen, took_s, event = run(ranks=(0, 1, 2), patience_s=3.0)
    assert set(codes.values()) == {2}, screen
    assert "rank 3" in screen and "node2: 1 of 2" in screen and "--exclude=node2" in screen
    assert event["event"] == "preflight_failed" and event["hosts"] == ["node2"]
    assert took_s < 20


def be_slow():
    """Multiply at a tenth of the speed."""
    whole = measure.multiply

    @functools.wraps(whole)
    def slow(device, is_asking):
        found = whole(device, is_asking)
        return found | {"multiply_s": found["multiply_s"] * 10}

    measure.multiply = slow


def compute_wrongly():
    """Give other bits than everybody else."""
    whole = measure.checksum
    measure.checksum = lambda values: whole(values + 1)


def test_a_slow_task_is_named_and_a_wrong_one_stops(run):
    codes, screen, _, event = run(changes={2: be_slow, 3: compute_wrongly})
    assert set(codes.values()) == {2}, screen
    assert "warning: node2, task 0: a product of matrices takes" in screen
    assert "node2, task 1: its result is " in screen and "--exclude=node2" in screen
    assert event["event"] == "preflight_failed" and event["hosts"] == ["node2"]


def hang_in_the_sum():
    """Never enter an all-reduce, as a task whose GPU does not answer."""
    measure.sum_over = lambda group, device: threading.Event().wait()


def limit_phase(name):
    """Make rank 0 wait for a phase for seconds only."""
    preflight_tasks.lead.STEPS = tuple(
        dataclasses.replace(step, limit_s=4.0) if step.name == name else step for step in steps.STEPS
    )
    preflight_tasks.run.LEAVE_S = 1.0


def test_a_task_that_hangs_is_named_and_all_end(run):
    codes, screen, took_s, event = run(changes={0: functools.partial(limit_phase, "in_host"), 3: hang_in_the_sum})
    assert set(codes.values()) == {2}, screen
    assert "hang" in screen and "node2, task 1: a sum over the GPUs of its host" in screen
    assert "node1" not in event["hosts"], event
    assert took_s < 40


def fail_on_reading():
    """Meet an error that nobody foresaw."""
    facts.gpu_facts = lambda local_rank: 1 / 0


def see_no_files():
    """Lose what is written to the run folder, as on a disk of this host alone."""
    shared_files.VISIBLE_S = 0.5
    shared_files._path = lambda folder, host: folder / "of_node2_alone" / f"{host}.txt"
    whole = shared_files.write_own

    def write(folder, host, token):
        (folder / "of_node2_alone").mkdir(parents=True, exist_ok=True)
        whole(folder, host, token)

    steps.write_own = write


def look_shortly():
    """Wait for others' files for half a second."""
    shared_files.VISIBLE_S = 0.5


def test_an_error_on_one_task_is_told_with_its_host(run):
    codes, screen, took_s, event = run(changes={1: fail_on_reading})
    assert set(codes.values()) == {2}, screen
    assert "failed on node1, task 1: ZeroDivisionError" in screen
    assert event["hosts"] == ["node1"]
    assert took_s < 30


def test_a_run_folder_that_is_not_shared_stops(run):
    codes, screen, _, event = run(changes={rank: see_no_files if rank > 1 else look_shortly for rank in range(4)})
    assert set(codes.values()) == {2}, screen
    assert "do not see each other's files in the run folder (missing)" in screen
    assert sorted(event["hosts"]) == ["node1", "node2"], "of two hosts nobody can say which"


def test_rank_0_that_is_not_there_is_named_by_each_host(run, tmp_path):
    preflight_tasks.run.IMPORT_S, before = 1.0, preflight_tasks.run.IMPORT_S
    try:
        codes, *_ = run(ranks=(2, 3), patience_s=1.0)
    finally:
        preflight_tasks.run.IMPORT_S = before
    assert codes == {2: 1, 3: 2}, "the command line makes 2 of what is raised"
    assert "node2 does not reach rank 0 at 127.0.0.1" in (tmp_path / "run_2.txt").read_text()
    assert (tmp_path / "run_3.txt").read_text() == "", "one task of a host speaks"


def keep_the_interpreter():
    """Wait in a call that never gives the interpreter's lock back, as in a driver that does not answer."""
    measure.multiply = lambda device, is_asking: ctypes.PyDLL(None).pause()
    preflight_tasks.run.WHOLE_S, preflight_tasks.run.MARGIN_S = 3.0, 0.5


def die_in_the_sum():
    """Be killed in an all-reduce, as for lack of memory: its neighbor, which is well, meets a closed connection."""
    measure.sum_over = lambda group, device: os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("change", "phase", "code", "what"),
    [
        (keep_the_interpreter, "multiply", 1, "a product of matrices"),
        (die_in_the_sum, "in_host", -signal.SIGKILL, "a sum over the GPUs of its host"),
    ],
)
def test_a_task_that_cannot_even_answer_is_named_and_ends(run, change, phase, code, what):
    codes, screen, took_s, event = run(changes={0: functools.partial(limit_phase, phase), 2: change})
    assert codes == {0: 2, 1: 2, 2: code, 3: 2}, screen
    assert f"1 tasks hang or are gone (node2, task 0: {what})" in screen
    assert event["hosts"] == ["node2"]
    assert took_s < 40
