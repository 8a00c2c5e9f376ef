"""Checksums, retention and falling back on live runs of two ranks; kills in the middle of saves.

The reference is one undisturbed run of ten steps on the same grid, which saves every second step beside training.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from grids import SMALL, UNPACKED
from medx_runs import read_metrics, stopped_at, tracker

from megatron_medx.run_folder import events
from megatron_medx.run_folder.integrity import problems, steps_on_disk

GRID = "dp2"

WORDS = (
    *SMALL, *UNPACKED, "training.steps=10", "checkpoint.every_steps=2", "checkpoint.async_save=true",
    "checkpoint.keep_last=3", "checkpoint.keep_every_steps=4",
)  # fmt: skip

NUM_KILLS = 4
"""Launches that are killed in their first save; every second one saves beside training, the others within it."""

SEED = 20261123
"""Of the instants; a kill that comes too late for the save is one at another place, and must be survived as well."""


def whole(runs):
    return runs.train("kept", *WORDS, grid=GRID)


def falls_back(runs):
    """The newest checkpoint, of step 8, loses a bit after the run has died."""
    source = stopped_at(8, runs.once("kept", whole).result().ok(), runs.folder / "kept_until_8")
    shard = source.checkpoints / "iter_0000008" / "__1_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    return runs.resume(source, "fell_back", grid=GRID)


def killed(runs):
    """One run, killed in save after save; what was seen of each kill, and the launch that ends it."""
    save_s = max(event["save_s"] for event in saves(runs.once("kept", whole).result().ok().folder))
    chance, seen, folder = random.Random(SEED), [], runs.folder / "killed"
    for number in range(NUM_KILLS):
        step = int(tracker(folder) or 0) + 2
        save = folder / "checkpoints" / f"iter_{step:07d}"
        left = identity(save)  # a former save of this step that was cut off
        words = (*WORDS, f"checkpoint.async_save={str(number % 2 == 0).lower()}", "--auto-resume")
        launch = runs.submit(lambda runs, words=words: runs.train("killed", *words, grid=GRID, folder=folder))
        while identity(save) in (None, left):
            assert not launch.done(), launch.result().said
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.7 * save_s))
        for pid in ranks(folder):
            os.kill(pid, signal.SIGKILL)
        ended = launch.result()
        seen.append((step, int(tracker(folder) or 0), (save / "metadata.json").exists(), ended.code, ranks(folder)))
    return seen, runs.train("killed", *WORDS, "--auto-resume", grid=GRID, folder=folder)


def identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another that had its name before; None where there is none."""
    return (folder.stat().st_ino, folder.stat().st_mtime_ns) if folder.exists() else None


def ranks(folder: Path) -> list[int]:
    """Processes that write to the logs of a run's ranks: the ranks, and what they started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            target = os.readlink(process / "fd" / "1")
        except OSError:
            continue
        if target.startswith(f"{folder}/logs/rank_"):
            found.append(int(process.name))
    return found


def saves(folder):
    return [event for event in events.read(folder) if event["event"] == "saved"]


@pytest.fixture(scope="module", autouse=True)
def flows(runs):
    """All flows of this module, started at once."""
    return {"kept": runs.once("kept", whole)} | {flow.__name__: runs.submit(flow) for flow in (falls_back, killed)}


@pytest.fixture
def undisturbed(flows):
    return flows["kept"].result().ok()


def test_checkpoints_of_a_live_run_are_summed_and_go_when_newer_ones_are_there(undisturbed):
    assert steps_on_disk(undisturbed.checkpoints) == [4, 6, 8, 10]
    assert [event["step"] for event in saves(undisturbed.folder)] == [2, 4, 6, 8, 10]
    deleted = [event["step"] for event in events.read(undisturbed.folder) if event["event"] == "checkpoint_deleted"]
    assert deleted == [2] and not list(undisturbed.checkpoints.glob(".*"))
    assert os.readlink(undisturbed.checkpoints / "latest") == "iter_0000010"
    for event in saves(undisturbed.folder)[1:]:
        folder = undisturbed.checkpoints / f"iter_{event['step']:07d}"
        assert event["bytes"] == sum(path.stat().st_size for path in folder.iterdir())


def test_megatron_accepts_our_checksums(undisturbed):
    from megatron.core.dist_checkpointing.validation import verify_integrity_manifest

    for step in steps_on_disk(undisturbed.checkpoints):
        verify_integrity_manifest(str(undisturbed.checkpoints / f"iter_{step:07d}"))


def test_saving_beside_training_is_not_turned_off(undisturbed):
    log = (undisturbed.folder / "logs" / "rank_0.log").read_text()
    assert log.count("scheduled an async checkpoint save") == 5 and "Disabling --async-save" not in log


def test_a_damaged_newest_checkpoint_costs_the_steps_behind_the_one_before(flows, undisturbed):
    resumed = flows["falls_back"].result().ok()
    assert "WARNING" in resumed.stderr and "iter_0000008 is damaged" in resumed.stderr
    assert "__1_0.distcp has sha256" in resumed.stderr and "resuming from step 6" in resumed.stderr
    (event,) = [event for event in events.read(resumed.folder) if event["event"] == "checkpoint_damaged"]
    assert event["step"] == 8 and Path(event["moved_to"]).name == "damaged-iter_0000008"
    assert (resumed.checkpoints / "damaged-iter_0000008").is_dir()
    for key in ("step", "loss", "grad_norm", "samples_crc"):
        assert resumed.column(key) == undisturbed.column(key), key
    assert problems(resumed.checkpoints / "iter_0000008") == [], "saved anew"


def test_kills_in_the_middle_of_saves_lose_nothing_that_was_saved(flows, undisturbed):
    seen, last = flows["killed"].result()
    last.ok()
    for step, newest, is_complete, code, survivors in seen:
        assert code != 0 and not survivors, (step, code, survivors)
        assert newest >= step - 2, "the save before was whole when this one began"
        assert is_complete or newest == step - 2
    assert any(not is_complete for _, _, is_complete, *_ in seen), f"no kill came in time to prove anything: {seen}"
    for key in ("step", "loss", "grad_norm", "samples_crc"):
        assert last.column(key) == undisturbed.column(key), key
    assert len(read_metrics(last.folder)) == 10
    assert all(problems(last.checkpoints / f"iter_{step:07d}") == [] for step in steps_on_disk(last.checkpoints))
    assert not [event for event in events.read(last.folder) if event["event"] == "checkpoint_damaged"]
    assert not list(last.checkpoints.glob(".deleted-*")), "what was cut off is gone"
