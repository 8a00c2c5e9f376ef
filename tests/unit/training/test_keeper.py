"""Checksums beside training, the link `latest`, and which checkpoints stay; processes are real, Megatron is not."""

import io
import json
import os
import time

import pytest

from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder import events
from megatron_medx.run_folder.integrity import newest_sound, problems
from megatron_medx.training import keeper
from megatron_medx.training.exports import Exporter
from megatron_medx.training.keeper import CheckpointKeeper, superfluous
from megatron_medx.training.monitor import StepMonitor


@pytest.fixture
def run(tmp_path):
    """A run of 30 steps that saves every 5 and keeps the newest two."""
    return Saves(tmp_path)


class Saves:
    """What Megatron would do, by hand."""

    def __init__(self, folder):
        self.folder, self.checkpoints, self.screen = folder, folder / "checkpoints", io.StringIO()
        self.checkpoints.mkdir()
        self.config = get_recipe("demo")
        self.config.training.steps, self.config.checkpoint.every_steps = 30, 5
        self.config.checkpoint.keep_last = 2
        self.monitor = StepMonitor(self.config, folder, self.screen)

    def keeper(self, exporter=None):
        made = CheckpointKeeper(self.config, self.folder, self.monitor, exporter)
        made.catch_up()
        return made

    def begin(self, step):
        folder = self.checkpoints / f"iter_{step:07d}"
        folder.mkdir()
        (folder / "__0_0.distcp").write_bytes(b"weights" * step)
        return folder

    def complete(self, step):
        folder = self.checkpoints / f"iter_{step:07d}"
        (folder / ".metadata").write_bytes(b"\x80__0_0.distcp.")
        (folder / "metadata.json").write_text("{}")
        (self.checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))

    def save(self, step):
        self.begin(step)
        self.complete(step)

    def steps(self):
        return sorted(int(path.name.removeprefix("iter_")) for path in self.checkpoints.glob("iter_*"))

    def happened(self, name):
        return [event for event in events.read(self.folder) if event["event"] == name]


def settle(made):
    """Go on from step to step until nothing is under way."""
    deadline = time.monotonic() + 60
    while made._process or made._waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        made.advance()


def finish(made):
    for _ in made.finish():
        pass


def go_through(run, steps, made=None):
    made = made or run.keeper()
    for step in steps:
        run.save(step)
        made.saved(step)
        settle(made)
    return made


def test_a_checkpoint_is_summed_linked_and_told_of(run):
    run.monitor.save_time_s = 2.5
    go_through(run, [5])
    folder = run.checkpoints / "iter_0000005"
    assert set(json.loads((folder / "integrity.json").read_text())["files"]) == {
        ".metadata", "__0_0.distcp", "metadata.json",
    }  # fmt: skip
    assert problems(folder) == [] and os.readlink(run.checkpoints / "latest") == "iter_0000005"
    (event,) = run.happened("saved")
    assert event["step"] == 5 and event["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert 2.5 <= event["save_s"] < 5, "with the seconds that it held training up"


def test_the_newest_two_and_the_multiples_stay(run):
    run.config.checkpoint.keep_every_steps = 15
    made = go_through(run, range(5, 35, 5))
    finish(made)
    assert run.steps() == [15, 25, 30]
    assert [event["step"] for event in run.happened("checkpoint_deleted")] == [5, 10, 20]
    assert not list(run.checkpoints.glob(".deleted-*")), "they are gone, not only out of sight"


def test_all_stay_where_nothing_is_said(run):
    run.config.checkpoint.keep_last = 0
    go_through(run, range(5, 35, 5))
    assert len(run.steps()) == 6


@pytest.mark.parametrize(
    ("checked", "keep_last", "every", "needed", "gone"),
    [
        ([5, 10, 15, 20], 2, 0, (), [5, 10]),
        ([20, 5, 15, 10], 2, 10, (), [5]),
        ([5, 10, 15, 20], 3, 0, (5,), []),
        ([5, 10], 2, 0, (), []),
        ([5], 4, 0, (), []),
        ([5, 10, 15], 0, 5, (), []),
    ],
)
def test_what_may_go(checked, keep_last, every, needed, gone):
    assert superfluous(checked, keep_last, every, needed) == gone


def test_a_save_under_way_is_left_alone_until_it_is_whole(run):
    made = go_through(run, [5, 10])
    folder = run.begin(15)
    made.saved(15)
    settle(made)
    assert not (folder / "integrity.json").exists() and os.readlink(run.checkpoints / "latest") == "iter_0000010"
    assert run.steps() == [5, 10, 15], "two that are checked stay while a third is written"
    run.complete(15)
    made.advance()
    settle(made)
    assert run.steps() == [10, 15]


def test_one_that_was_not_checked_takes_nobodys_place(run, monkeypatch):
    """The checksums of 15 fail, as on a disk that is full: 5 and 10 stay, and training goes on."""
    made = go_through(run, [5, 10])
    real = keeper._checksums
    broken = lambda folder, step: keeper.Task("writing the checksums", ("false",), step)  # noqa: E731
    monkeypatch.setattr(keeper, "_checksums", broken)
    go_through(run, [15], made)
    assert run.steps() == [5, 10, 15] and os.readlink(run.checkpoints / "latest") == "iter_0000010"
    assert "writing the checksums failed with code 1" in run.screen.getvalue()
    assert [event["step"] for event in run.happened("save_failed")] == [15]
    monkeypatch.setattr(keeper, "_checksums", real)
    settle(run.keeper())  # the next launch
    assert problems(run.checkpoints / "iter_0000015") == [] and run.steps() == [10, 15]


def test_a_process_that_cannot_be_started_stops_nothing(run, monkeypatch):
    def none_left(*args, **kwargs):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(keeper.subprocess, "Popen", none_left)
    go_through(run, [5])
    assert "Resource temporarily unavailable. Training goes on" in run.screen.getvalue()


def test_what_is_still_to_be_exported_stays(run, monkeypatch):
    """The export of 5 hangs, so 5 stays though 10 and 15 are there; when it is done, the next save lets it go."""
    run.config.checkpoint.export_every_steps = 5
    exporter = Exporter(run.config, run.folder, run.monitor)
    under_way = {5}
    monkeypatch.setattr(exporter, "needs", lambda step: step in under_way)
    made = go_through(run, [5, 10, 15], run.keeper(exporter))
    assert run.steps() == [5, 10, 15]
    under_way.clear()
    go_through(run, [20], made)
    assert run.steps() == [15, 20]


def test_an_exporter_needs_what_waits_and_what_runs(run):
    exporter = Exporter(run.config, run.folder, run.monitor)
    exporter._saving, exporter._waiting, exporter._process, exporter._step = [20], [15], object(), 10
    assert [step for step in (5, 10, 15, 20) if exporter.needs(step)] == [10, 15, 20]
    exporter._process = None
    assert not exporter.needs(10)


def test_damaged_ones_are_never_deleted_and_do_not_count(run):
    go_through(run, [5, 10])
    (run.checkpoints / "iter_0000010" / "__0_0.distcp").write_bytes(b"spoiled")
    assert newest_sound(run.checkpoints, lambda line: None) == 5
    made = run.keeper()
    go_through(run, [10, 15, 20], made)
    finish(made)
    assert run.steps() == [15, 20] and (run.checkpoints / "damaged-iter_0000010" / "__0_0.distcp").is_file()


def test_what_a_killed_launch_left_is_done_by_the_next(run):
    go_through(run, [5])
    run.save(10)  # killed before its checksums
    (run.checkpoints / ".deleted-iter_0000001").mkdir()
    made = run.keeper()
    settle(made)
    assert problems(run.checkpoints / "iter_0000010") == [] and run.steps() == [5, 10]
    assert not list(run.checkpoints.glob(".deleted-*"))
    assert [(event["step"], event["save_s"] is None) for event in run.happened("saved")] == [(5, False), (10, True)]


def test_without_checksums_a_whole_one_counts_at_once(run):
    run.config.checkpoint.checksums = False
    made = go_through(run, [5, 10, 15])
    finish(made)
    assert run.steps() == [10, 15] and not list(run.checkpoints.glob("*/integrity.json"))
    assert os.readlink(run.checkpoints / "latest") == "iter_0000015"
    assert [event["step"] for event in run.happened("saved")] == [5, 10, 15]


def test_the_end_of_a_run_waits_for_checksums_and_not_for_ever_for_a_save(run, monkeypatch):
    monkeypatch.setattr(keeper, "TRACKER_PATIENCE_S", 0.5)
    monkeypatch.setattr(keeper, "POLL_S", 0.02)
    made = run.keeper()
    run.save(25)
    made.saved(25)
    run.begin(30)
    made.saved(30)
    finish(made)
    assert problems(run.checkpoints / "iter_0000025") == [] and made._process is None
    assert "not complete: the checkpoint of step 30" in run.screen.getvalue()


def test_a_failing_run_ends_what_is_under_way(run, monkeypatch):
    monkeypatch.setattr(keeper, "_checksums", lambda folder, step: keeper.Task("a long one", ("sleep", "600"), step))
    made = run.keeper()
    run.save(5)
    made.saved(5)
    process = made._process
    assert process.poll() is None
    start = time.monotonic()
    made.stop()
    assert process.poll() is not None and time.monotonic() - start < 5


@pytest.mark.parametrize("is_async", [False, True])
def test_a_save_that_fails_is_told_of(run, is_async):
    """The error of a full disk comes out of the save itself, or, beside training, of a later step."""
    made = go_through(run, [5])
    run.begin(10)
    if is_async:
        made.saved(10)
    else:
        run.monitor.saving_step = 10
    try:
        raise OSError(28, "No space left on device")
    except OSError:
        made.stop()
    (event,) = run.happened("save_failed")
    assert event["step"] == 10 and event["why"] == "OSError: [Errno 28] No space left on device"
    run.monitor.saving_step = None
    run.keeper().stop()
    assert len(run.happened("save_failed")) == 1, "nothing was being saved"
