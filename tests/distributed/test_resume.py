"""Going on: on the same grid, after a kill, with other weights, from run.yaml.

The reference is one undisturbed run of ten steps on one process (scenario `ten steps`).
"""

import os
import signal
import time

import pytest
import torch
from agreement import LOSS_TOLERANCE, assert_same_losses
from grids import ONE, SCENARIOS, SMALL, UNPACKED
from medx_runs import read_metrics, stopped_at
from processes import wait_until, worker_pids

from megatron_medx.checkpoint.megatron_files.torch_dist import TorchDistFolder
from megatron_medx.config.files import read_run_yaml
from megatron_medx.status.report import run_status


def resume_same_grid(runs):
    """One process to one process, over a metrics.jsonl that already has steps 6 to 10."""
    whole = runs.scenario("ten steps", ONE).result().ok()
    source = stopped_at(5, whole, runs.folder / "stopped_at_5")
    assert len(source.column("step")) == 10, "the lines of the steps that are repeated are there"
    return runs.resume(source, "on_1_again")


def die_and_resume(runs):
    """tp2 saved every 3 steps and lost a rank at step 5; then goes on with 1 process."""

    def kill_rank_1(launcher, folder):
        wait_until(lambda: len(read_metrics(folder)) >= 5, launcher, "step 5")
        os.kill(worker_pids(launcher)[1], signal.SIGKILL)
        killed_at.append(time.monotonic())

    killed_at = []
    words = (*SMALL, *SCENARIOS["ten steps"], "checkpoint.every_steps=3")
    died = runs.train("rank_dies", *words, grid="tp2", while_running=kill_rank_1)
    duration_s = time.monotonic() - killed_at[0]
    steps_before = [line["step"] for line in read_metrics(died.folder)]
    return died, duration_s, steps_before, runs.resume(died, "rank_died")


def start_from(runs):
    """A new run from the weights of another; a rate of almost 0 leaves them as they are."""
    source = runs.scenario("ten steps", ONE).result().ok()
    words = (*UNPACKED, "training.steps=1", "optimizer.warmup_tokens=0", "optimizer.lr=1e-30", "optimizer.min_lr=0")
    return runs.train("start_from", *SMALL, *words, f"checkpoint.start_from={source.checkpoints}")


def repeat_from_yaml(runs):
    """`medx train X/run.yaml run.folder=...` and nothing else."""
    source = runs.scenario("ten steps", ONE).result().ok()
    folder = runs.folder / "from_yaml"
    return runs.warm(["train", str(source.folder / "run.yaml"), f"run.folder={folder}"], folder)


FLOWS = {
    "rank dies": die_and_resume,
    "same grid": resume_same_grid,
    "start_from": start_from,
    "run.yaml": repeat_from_yaml,
}


@pytest.fixture(scope="module", autouse=True)
def flows(runs):
    """All flows of this module, started at once."""
    return {name: runs.submit(flow) for name, flow in FLOWS.items()}


@pytest.fixture(scope="module")
def undisturbed(runs):
    """Ten steps on one process."""
    return runs.scenario("ten steps", ONE).result().ok()


def test_on_the_same_grid_every_digit_is_the_same(flows, undisturbed):
    resumed = flows["same grid"].result().ok()
    for key in ("step", "loss", "grad_norm", "lr", "tokens", "images"):
        assert resumed.column(key) == undisturbed.column(key), key
    before, after = (TorchDistFolder(run.checkpoints / "iter_0000010") for run in (undisturbed, resumed))
    differing = [key for key in before.specs if not torch.equal(before.read(key), after.read(key))]
    assert not differing, differing


def test_a_rank_that_dies_ends_the_run_and_is_named(flows):
    died, duration_s, *_ = flows["rank dies"].result()
    assert died.code == 1, died.said
    assert "rank 1" in died.said and f"{died.folder}/logs/rank_1.log" in died.said, died.said
    assert duration_s < 20, "ten seconds of grace and a little"
    assert not died.survivors


def test_steps_past_the_last_checkpoint_are_told_once(flows, undisturbed):
    *_, steps_before, resumed = flows["rank dies"].result()
    assert steps_before[-1] in (4, 5, 7, 8), f"the kill came at a save: {steps_before}"
    assert resumed.ok().column("step") == list(range(1, 11))
    losses = {"undisturbed": undisturbed.column("loss"), "died on tp2, resumed on 1": resumed.column("loss")}
    assert_same_losses(losses, LOSS_TOLERANCE)


def test_status_tells_of_the_kill_and_of_the_steps_that_were_repeated(flows):
    died, *_, steps_before, resumed = flows["rank dies"].result()
    saved = 3 * (steps_before[-1] // 3)
    report = run_status(resumed.folder, time.time())
    assert report["state"]["name"] == "finished" and report["step"] == report["steps"] == 10
    first, second = report["launches"][0], report["launches"][-1]
    assert (first["num_ranks"], first["resumed_from"], first["first_step"]) == (2, None, 1)
    assert (first["how"], first["last_step"]) == ("failed", steps_before[-1])
    assert "rank 1" in first["why"] and "SIGKILL" in first["why"]
    assert (second["num_ranks"], second["resumed_from"], second["first_step"]) == (1, saved, saved + 1)
    assert (second["how"], second["last_step"], second["steps_repeated"]) == ("finished", 10, steps_before[-1] - saved)
    assert second["start_s"] > 0
    assert report["saves"]["last"][-1]["step"] == report["checkpoints"]["resume_step"] == 10
    assert all(entry["whole"] and entry["checksums"] for entry in report["checkpoints"]["last"])
    dead = run_status(died.folder, time.time() + 3600)["state"]
    assert dead["name"] == "stopped" and "SIGKILL" in dead["why"]


def test_starting_weights_come_from_the_other_run_and_the_step_does_not(flows, undisturbed):
    started = flows["start_from"].result().ok()
    assert started.column("step") == [1]
    assert started.column("tokens") == undisturbed.column("tokens")[:1], "the order of data starts anew"
    assert started.column("loss")[0] < undisturbed.column("loss")[0] - 0.5
    theirs = TorchDistFolder(undisturbed.checkpoints / "iter_0000010")
    ours = TorchDistFolder(started.checkpoints / "iter_0000001")
    assert theirs.specs == ours.specs
    for key in theirs.specs:
        torch.testing.assert_close(ours.read(key), theirs.read(key), rtol=0, atol=1e-28, msg=key)


def test_run_yaml_reproduces_the_run(flows, undisturbed):
    again = flows["run.yaml"].result().ok()
    assert again.column("loss") == undisturbed.column("loss")
    written = [read_run_yaml(run.checkpoints / "run.yaml") for run in (undisturbed, again)]
    written[1].run.folder = written[0].run.folder
    assert written[0] == written[1]
