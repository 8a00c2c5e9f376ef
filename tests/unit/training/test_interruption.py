"""Signals that are taken by one thread, and what the ranks make of them."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from megatron_medx.errors import DataError
from megatron_medx.run_folder import events
from megatron_medx.training import interruption
from megatron_medx.training.interruption import Hurried, Interruption, first_signal, last_launch, tell_of_failure

LISTENING = """
import os, signal, subprocess, sys, time
from megatron_medx.training.interruption import SignalListener, block_signals
block_signals()
os.kill(os.getpid(), signal.SIGUSR1)  # before anybody listens
listener = SignalListener()
listener.start()
while not listener.number:
    time.sleep(0.01)
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
os.kill(os.getpid(), signal.SIGTERM)
child.send_signal(signal.SIGTERM)
child.send_signal(signal.SIGUSR1)
child.communicate(b"go on\\n")
assert time.time() - listener.time_s < 60
print(signal.Signals(listener.number).name, child.returncode)
"""


def python(program, *words, **options):
    return subprocess.run(
        [sys.executable, "-c", program, *words], text=True, capture_output=True, timeout=60, **options
    )


def test_the_first_signal_counts_and_neither_the_process_nor_its_children_die_of_one():
    run = python(LISTENING)
    assert (run.returncode, run.stdout) == (0, "SIGUSR1 0\n"), run.stderr


def test_a_rank_dies_with_its_launcher():
    rank = "import sys; from megatron_medx.training.interruption import die_with as f; f(int(sys.argv[1])); input()"
    launcher = (
        "import os, subprocess, sys\n"
        f"rank = subprocess.Popen([sys.executable, '-c', {rank!r}, str(os.getpid())], stdin=subprocess.PIPE)\n"
        "print(rank.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    pid = int(python(launcher).stdout)
    deadline = time.monotonic() + 30
    while lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_first_rank_that_got_a_signal_is_named():
    usr1, term = int(signal.SIGUSR1), int(signal.SIGTERM)
    assert first_signal([(0, 0.0, "a"), (term, 7.0, "b"), (usr1, 6.5, "c")]) == (2, usr1, "c")
    assert first_signal([(term, 7.0, "a"), (term, 7.0, "b")]) == (0, term, "a")


@pytest.fixture
def ranks(monkeypatch):
    """This process as rank 1 of 2; the other one has got no signal."""
    import torch.distributed as dist

    def gather(gathered, mine):
        gathered[:] = [(0, 0.0, "host0"), mine]

    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda *args, **kwargs: None)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(interruption.socket, "gethostname", lambda: "host1")


def names(folder):
    return [event["event"] for event in events.read(folder)]


def test_a_signal_ends_the_run_after_the_step_at_hand(ranks, tmp_path):
    listener = SimpleNamespace(number=0, time_s=0.0)
    leaving = Interruption(listener, tmp_path, num_steps=10, is_reporter=True)
    leaving.step = 4
    assert not leaving.is_due() and leaving.cause is None and not names(tmp_path)
    listener.number = int(signal.SIGTERM)
    leaving.step = 5
    assert leaving.is_due() and leaving.by_signal
    leaving.tell_at_once()
    told, left = events.read(tmp_path)
    assert {key: told[key] for key in ("event", "signal", "rank", "host", "step")} == {
        "event": "signal", "signal": "SIGTERM", "rank": 1, "host": "host1", "step": 5,
    }  # fmt: skip
    assert (left["event"], left["step"], left["signal"]) == ("interrupted", 5, "SIGTERM")


def test_after_the_last_step_a_signal_interrupts_nothing(ranks, tmp_path):
    leaving = Interruption(SimpleNamespace(number=15, time_s=1.0), tmp_path, num_steps=10, is_reporter=True)
    leaving.step = 10
    assert not leaving.is_due()
    leaving.tell_at_once()
    assert leaving.end() == 0 and names(tmp_path) == ["finished"]


def test_an_argument_of_megatron_ends_a_run_with_code_0(ranks, tmp_path):
    leaving = Interruption(SimpleNamespace(number=0, time_s=0.0), tmp_path, num_steps=10, is_reporter=True)
    leaving.step, leaving.cause = 3, "exit_interval"
    leaving.tell_at_once()
    assert leaving.end() == 0 and not leaving.by_signal and names(tmp_path) == ["interrupted"]


def test_other_ranks_write_nothing(ranks, tmp_path):
    leaving = Interruption(SimpleNamespace(number=15, time_s=1.0), tmp_path, num_steps=10, is_reporter=False)
    assert leaving.is_due()
    leaving.tell_at_once()
    assert not names(tmp_path)


def test_who_leaves_does_not_wait_for_ever(monkeypatch):
    def endless():
        while True:
            yield

    monkeypatch.setattr(interruption, "LEAVE_PATIENCE_S", 0.05)
    assert sum(1 for _ in Hurried(SimpleNamespace(finish=endless)).finish()) > 10
    assert list(Hurried(SimpleNamespace(finish=lambda: iter([None] * 3))).finish()) == [None] * 3


def test_a_launch_is_looked_up_in_the_events(tmp_path):
    assert last_launch(tmp_path)[1] == 0
    events.append(tmp_path, "launched", ranks=2, hosts=["a"], resumed_from=None)
    events.append(tmp_path, "launched", ranks=2, hosts=["a"], resumed_from=40)
    events.append(tmp_path, "first_step", step=41, start_s=1.0)
    launched_s, steps = last_launch(tmp_path)
    assert steps == 40 and abs(time.time() - launched_s) < 60


def test_under_srun_the_first_rank_to_fail_tells_why(tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(os, "environ", os.environ | {"RANK": "3"})
    tell_of_failure(ValueError("on this machine the launcher tells"), tmp_path)
    assert not names(tmp_path)
    os.environ["SLURM_PROCID"] = "3"
    tell_of_failure(DataError("a sample is broken", "whole ones", "mend it"), tmp_path)
    tell_of_failure(ValueError("Connection closed by peer"), tmp_path)
    (failed,) = events.read(tmp_path)
    assert (failed["code"], failed["rank"], failed["why"], failed["step"]) == (2, 3, "a sample is broken", None)
    (tmp_path / "logs" / interruption.FAILURE_MARK).unlink()
    tell_of_failure(ValueError("first line\nsecond"), tmp_path)
    assert events.read(tmp_path)[-1]["why"] == "ValueError: first line" and events.read(tmp_path)[-1]["code"] == 1
    (tmp_path / "logs" / interruption.FAILURE_MARK).unlink()
    tell_of_failure(RuntimeError("gloo: Connection closed by peer [127.0.0.1]"), tmp_path)
    assert events.read(tmp_path)[-1]["rank"] is None, "it is another one that was lost"
