"""When a step counts as hung, and what a hung rank leaves behind."""

import subprocess
import sys

import pytest

from megatron_medx.config.run import SurvivalSection
from megatron_medx.run_folder import events
from megatron_medx.training.watchdog import HANG_MARK, NUM_STEPS, Watchdog

HANGING = """
import ctypes, sys, time
from pathlib import Path
from megatron_medx.config.run import SurvivalSection
from megatron_medx.training.watchdog import Watchdog

survival = SurvivalSection(hang_factor=2.0, hang_min_s=0.3, start_patience_s=float(sys.argv[3]))
watchdog = Watchdog(survival, Path(sys.argv[1]), int(sys.argv[2]), 6, print)
watchdog.start()
for step in range(7, 7 + int(sys.argv[5])):
    time.sleep(0.05)
    watchdog.step_done(step, 0.05)

def a_collective_that_never_ends():
    if sys.argv[4] == "holds the interpreter":
        ctypes.PyDLL(None).sleep(60)
    time.sleep(60)

for moment in range(20 if sys.argv[4] == "ends" else 0):
    time.sleep(0.05)
    watchdog.still_ending()
a_collective_that_never_ends()
"""


def hang(folder, rank=0, patience_s=60.0, how="waits", steps=20):
    (folder / "logs").mkdir(exist_ok=True)
    words = map(str, (folder, rank, patience_s, how, steps))
    return subprocess.run([sys.executable, "-c", HANGING, *words], text=True, capture_output=True, timeout=60)


def test_a_step_that_hangs_leaves_its_stacks_and_asks_to_be_started_again(tmp_path):
    run = hang(tmp_path)
    assert run.returncode == events.AGAIN, run.stderr
    stacks = (tmp_path / "logs" / "stacks_rank_0.txt").read_text()
    assert "a_collective_that_never_ends" in stacks and "after step 26" in stacks
    (event,) = events.read(tmp_path)
    assert (event["event"], event["step"], event["rank"]) == ("hang", 27, 0)
    assert event["waited_s"] >= 0.3 and event["median_s"] == 0.05
    assert "hung: " in run.stdout
    assert hang(tmp_path, rank=1).returncode == events.AGAIN
    assert (tmp_path / "logs" / "stacks_rank_1.txt").exists() and len(events.read(tmp_path)) == 1, "one rank tells"
    (tmp_path / "logs" / HANG_MARK).unlink()


def test_the_way_to_the_first_step_has_its_own_patience(tmp_path):
    run = hang(tmp_path, patience_s=0.5, steps=0)
    assert run.returncode == events.AGAIN, run.stderr
    assert events.read(tmp_path)[0]["step"] == 7


def test_the_way_out_is_watched_moment_by_moment(tmp_path):
    run = hang(tmp_path, patience_s=0.5, how="ends", steps=2)
    assert run.returncode == events.AGAIN, run.stderr
    [event] = events.read(tmp_path)
    assert event["step"] == 9 and 0.5 <= event["waited_s"] < 1.0, "of its 20 moments the last one counts"


def test_a_rank_whose_interpreter_stands_still_dies_with_its_stack(tmp_path):
    run = hang(tmp_path, how="holds the interpreter", patience_s=0.5, steps=0)
    assert run.returncode == 1 and "a_collective_that_never_ends" in run.stderr
    assert not events.read(tmp_path)


@pytest.fixture
def watchdog(tmp_path):
    survival = SurvivalSection(hang_factor=20.0, hang_min_s=300.0, start_patience_s=1800.0)
    return Watchdog(survival, tmp_path, 0, 0, lambda line: None)


def test_the_limit_follows_the_median_of_the_last_steps(watchdog):
    assert watchdog.limit_s() == 1800.0
    watchdog.step_done(1, 90.0)  # compiles kernels
    assert watchdog.limit_s() == 1800.0, "20 times the only step"
    for step in range(2, 5):
        watchdog.step_done(step, 2.0)
    assert watchdog.limit_s() == 300.0
    for step in range(NUM_STEPS):
        watchdog.step_done(step, 30.0)
    assert watchdog.limit_s() == 600.0


def test_saving_and_validating_have_the_patience_of_a_start(watchdog):
    for step in range(1, 4):
        watchdog.step_done(step, 1.0)
    limits = []

    def save(path, sure=False):
        limits.append((path, sure, watchdog.limit_s()))
        return "saved"

    assert watchdog.patiently(save)("here", sure=True) == "saved"
    assert limits == [("here", True, 1800.0)] and watchdog.limit_s() == 300.0

    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        watchdog.patiently(fail)()
    assert watchdog.limit_s() == 300.0


def test_a_factor_of_0_never_looks(tmp_path):
    program = HANGING.replace("hang_factor=2.0", "hang_factor=0.0").replace("sleep(60)", "sleep(1.2)")
    words = [str(tmp_path), "0", "0.2", "waits", "0"]
    assert subprocess.run([sys.executable, "-c", program, *words], timeout=60).returncode == 0
