"""Signals and hangs of live runs: what is saved, how a run ends, and that it goes on as if nothing had happened.

The reference is the undisturbed run of ten steps on two ranks that tensor parallelism joins (scenario `ten steps`).
"""

import os
import re
import signal

import pytest
from grids import SCENARIOS, SMALL
from medx_runs import read_metrics, tracker
from processes import wait_until, worker_pids

from megatron_medx.run_folder import events
from megatron_medx.run_folder.events import INTERRUPTED

TP2 = "tp2"

WORDS = (*SMALL, *SCENARIOS["ten steps"])

EXACT = ("step", "loss", "grad_norm", "lr", "tokens", "images", "samples_crc")
"""Columns of metrics.jsonl that are the same, digit by digit, however often a run was interrupted."""


def after_steps(num_steps, act):
    """For `while_running`: do something to the launcher once so many steps are in metrics.jsonl."""

    def wait_and_act(launcher, folder):
        wait_until(lambda: len(read_metrics(folder)) >= num_steps, launcher, f"step {num_steps}")
        act(launcher)

    return wait_and_act


def signal_one_rank(runs):
    """SIGUSR1 to rank 1 alone, as if Slurm's warning reached one node first; then --resume."""
    left = runs.train(
        "usr1_to_a_rank",
        *WORDS,
        grid=TP2,
        while_running=after_steps(1, lambda launcher: os.kill(worker_pids(launcher)[1], signal.SIGUSR1)),
    )
    return left, runs.resume(left, "usr1_gone_on", grid=TP2)


def signal_the_launcher(runs):
    """SIGTERM to the launcher of a run that saves in the background; then --auto-resume."""
    words = (*WORDS, "checkpoint.async_save=true")
    while_running = after_steps(1, lambda launcher: launcher.send_signal(signal.SIGTERM))
    left = runs.train("term_to_the_launcher", *words, grid=TP2, while_running=while_running)
    return left, runs.train("term_to_the_launcher", *words, "--auto-resume", grid=TP2)


def signal_early(runs):
    """SIGTERM to the launcher as soon as both ranks are there, long before a step; then --auto-resume."""

    def terminate(launcher, folder):
        wait_until(lambda: len(worker_pids(launcher)) == 2, launcher, "two ranks")
        launcher.send_signal(signal.SIGTERM)

    left = runs.train("term_at_the_start", *WORDS, grid=TP2, while_running=terminate)
    return left, runs.train("term_at_the_start", *WORDS, "--auto-resume", grid=TP2)


def freeze_a_rank(runs):
    """Rank 1 stops for good after step 3; saved every second step."""
    words = (*WORDS, "checkpoint.every_steps=2", "survival.hang_factor=3", "survival.hang_min_s=10")
    while_running = after_steps(3, lambda launcher: os.kill(worker_pids(launcher)[1], signal.SIGSTOP))
    return runs.train("a_rank_stops", *words, grid=TP2, while_running=while_running)


FLOWS = {
    "one rank": signal_one_rank,
    "launcher": signal_the_launcher,
    "early": signal_early,
    "hang": freeze_a_rank,
}


@pytest.fixture(scope="module", autouse=True)
def flows(runs):
    """All flows of this module, started at once."""
    return {name: runs.submit(flow) for name, flow in FLOWS.items()}


@pytest.fixture(scope="module")
def undisturbed(runs):
    """Ten steps on the same grid."""
    return runs.scenario("ten steps", TP2).result().ok()


def told(run, *names):
    """Events of a run by name, in order."""
    return [event for event in events.read(run.folder) if event["event"] in names]


def assert_same_run(run, undisturbed):
    for key in EXACT:
        assert run.ok().column(key) == undisturbed.column(key), key


@pytest.mark.parametrize(("flow", "name"), [("one rank", "SIGUSR1"), ("launcher", "SIGTERM")])
def test_a_signal_saves_the_step_at_hand_and_the_run_goes_on_bit_for_bit(flows, undisturbed, flow, name):
    left, resumed = flows[flow].result()
    assert left.code == INTERRUPTED and not left.survivors, left.said
    assert f"medx train {left.folder}/run.yaml --auto-resume" in left.stdout and not left.stderr, left.said
    assert_same_run(resumed, undisturbed)
    received, interrupted, finished = told(resumed, "signal", "interrupted", "finished")
    step = interrupted["step"]
    assert 1 <= step < 10 and received["step"] == step and received["signal"] == interrupted["signal"] == name
    assert flow != "one rank" or received["rank"] == 1
    assert finished["step"] == 10
    first, second = told(resumed, "launched")
    assert (first["ranks"], first["resumed_from"], second["resumed_from"]) == (2, None, step)
    assert [event["step"] for event in told(resumed, "first_step")] == [1, step + 1]
    assert (resumed.checkpoints / f"iter_{step:07d}" / "integrity.json").exists(), "its checksums were waited for"


def test_a_signal_leaves_one_checkpoint_of_the_step_and_the_picture(flows):
    left, _ = flows["one rank"].result()
    (interrupted,) = told(left, "interrupted")
    assert tracker(left.folder) == str(interrupted["step"])
    assert [event["step"] for event in told(left, "saved")][-1] == interrupted["step"]
    log = (left.folder / "logs" / "rank_0.log").read_text()
    saved = re.findall(r"successfully saved checkpoint from iteration +(\d+)", log)
    assert saved.count(str(interrupted["step"])) == 1, saved
    assert left.column("step") == list(range(1, interrupted["step"] + 1))
    assert (left.folder / "loss.png").exists()


def test_a_signal_before_the_first_step_loses_nothing(flows, undisturbed):
    left, resumed = flows["early"].result()
    assert left.code == INTERRUPTED and not left.survivors, left.said
    assert not tracker(left.folder) or resumed.column("step")[0] == 1
    (interrupted,) = told(resumed, "interrupted")
    assert interrupted["step"] == 0 and told(resumed, "launched")[1]["resumed_from"] is None
    assert_same_run(resumed, undisturbed)


def test_a_hang_leaves_stacks_and_is_started_again(flows, undisturbed):
    run = flows["hang"].result()
    assert_same_run(run, undisturbed)
    assert not run.survivors
    (hang,) = told(run, "hang")
    assert hang["rank"] == 0 and hang["waited_s"] >= 10
    # in the step, or between two of them, where the ranks ask one another for signals
    stacks = (run.folder / "logs" / "stacks_rank_0.txt").read_text()
    assert re.search(r'megatron/training/training\.py", line \d+ in train\n', stacks), stacks
    assert not (run.folder / "logs" / "stacks_rank_1.txt").exists(), "it stands still"
    first, second = told(run, "launched")
    assert first["resumed_from"] is None and second["resumed_from"] >= 2
    assert "rank 1 did not end by itself" in run.stdout and "hung: " in run.stdout
    assert not told(run, "failed", "gave_up")
