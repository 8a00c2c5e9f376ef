"""Which checkpoints of a running job are exported, when, and which exports stay; the conversion is a stand-in."""

import io
import json
import os
import sys
import time

import pytest

from megatron_medx import cli
from megatron_medx.recipes import get_recipe
from megatron_medx.training import exports
from megatron_medx.training.exports import Exporter, conversion_words, environment, losers
from megatron_medx.training.monitor import StepMonitor

STAND_IN = """
import pathlib, sys, time
checkpoint, out = map(pathlib.Path, sys.argv[3:5])
(out.parent / f"{out.name}.partial").mkdir()
while (out.parent / "hold").exists():
    time.sleep(0.01)
if (checkpoint / "broken").exists():
    sys.exit("it is broken")
if out.exists():
    assert "--overwrite" in sys.argv
    (out / "config.json").unlink(), out.rmdir()
(out.parent / f"{out.name}.partial").rename(out)
(out / "config.json").write_text(checkpoint.name)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of 30 steps that saves every 5, exports every 10 and is validated; the stand-in converts."""
    return StandInRun(tmp_path, monkeypatch)


class StandInRun:
    """What Megatron and validation would do, by hand."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.screen = folder, io.StringIO()
        (folder / "logs").mkdir()
        (folder / "checkpoints").mkdir()
        (folder / "stand_in.py").write_text(STAND_IN)
        python = sys.executable
        monkeypatch.setattr(exports, "LATER_ON_THE_DISK", (python, str(folder / "stand_in.py"), "--"))
        real = exports.subprocess.Popen
        # behind the stand-in stand `python -m megatron_medx.cli`, and then the words
        popen = lambda command, **rest: real(command[:2] + command[6:], **rest)  # noqa: E731
        monkeypatch.setattr(exports.subprocess, "Popen", popen)
        self.config = get_recipe("demo")
        self.config.training.steps, self.config.checkpoint.every_steps = 30, 5
        self.config.checkpoint.export_every_steps, self.config.checkpoint.keep_exports = 10, 2
        self.config.training.validate_every_steps = 5

    def exporter(self):
        exporter = Exporter(self.config, self.folder, StepMonitor(self.config, self.folder, self.screen))
        exporter.catch_up()
        return exporter

    def save(self, step, is_whole=True):
        folder = self.folder / "checkpoints" / f"iter_{step:07d}"
        folder.mkdir(exist_ok=True)
        if is_whole:
            (folder / "metadata.json").touch()
            (self.folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(step))

    def validate(self, losses, **others):
        """Losses of the main set, whose lines do not name it, as before there were others, and of others by name."""
        lines = [{"step": step, "loss": loss} for step, loss in losses.items()]
        lines += [{"step": s, "set": name, "loss": loss} for name, found in others.items() for s, loss in found.items()]
        (self.folder / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def names(self):
        return sorted(path.name for path in (self.folder / "exports").glob("iter_*"))

    def index(self):
        return {entry["step"]: entry for entry in json.loads((self.folder / "exports" / "index.json").read_text())}

    def best(self):
        return os.readlink(self.folder / "exports" / "best")


def finish(exporter):
    for _ in exporter.finish():
        pass


def go_through(run, losses):
    """Save all steps that are due, validate each before, and wait for the exports."""
    exporter = run.exporter()
    for step in losses:
        run.validate({before: loss for before, loss in losses.items() if before <= step})
        run.save(step)
        exporter.saved(step)
    finish(exporter)
    return exporter


def test_the_best_stay_and_the_link_points_to_the_best(run):
    go_through(run, {5: 1.0, 10: 4.0, 15: 1.0, 20: 3.0, 25: 1.0, 30: 5.0})
    assert run.names() == ["iter_0000010", "iter_0000020"], "5, 15 and 25 are not due, 30 is the worst"
    assert run.best() == "iter_0000020"
    assert run.index()[30] == {"step": 30, "folder": "iter_0000030", "validation_loss": 5.0, "kept": False}
    assert run.index()[20] == {"step": 20, "folder": "iter_0000020", "validation_loss": 3.0, "kept": True}
    assert len(list((run.folder / "checkpoints").glob("iter_*"))) == 6, "checkpoints are never deleted"
    assert not list((run.folder / "exports").glob(".deleted-*"))
    said = run.screen.getvalue()
    assert "training is done; waiting for the export of step" in said and "step 30: exported to" in said


@pytest.mark.parametrize(("main", "best"), [("split/val", "iter_0000010"), ("", "iter_0000020")])
def test_exports_are_ranked_by_the_main_set_or_the_first(run, main, best):
    data = run.config.data
    data.validation_path, data.validation_sets = main, {"chest": "split/chest", "codes": "codes"}
    exporter = run.exporter()
    run.validate({10: 1.0, 20: 2.0} if main else {}, codes={10: 1.0, 20: 2.0}, chest={10: 2.0, 20: 1.0})
    for step in (10, 20):
        run.save(step)
        exporter.saved(step)
    finish(exporter)
    assert run.best() == best


def test_without_validation_the_newest_stay_and_there_is_no_link(run):
    run.config.training.validate_every_steps = 0
    go_through(run, dict.fromkeys((10, 20, 30)))
    assert run.names() == ["iter_0000020", "iter_0000030"]
    assert not (run.folder / "exports" / "best").is_symlink()


def test_all_stay_where_nothing_is_said(run):
    run.config.checkpoint.keep_exports = 0
    go_through(run, {10: 2.0, 20: None, 30: 3.0})
    assert len(run.names()) == 3 and run.best() == "iter_0000010"


def test_a_step_whose_loss_is_not_known_yet_takes_nobodys_place(run):
    """The last step is validated after it was saved, and ranked when all is done."""
    run.config.checkpoint.keep_exports = 1
    exporter = go_through(run, {10: 2.0, 20: 3.0})
    run.save(30)
    exporter.saved(30)
    while 30 not in run.index():
        exporter.advance()
        time.sleep(0.01)
    assert run.names() == ["iter_0000010", "iter_0000030"]
    run.validate({10: 2.0, 20: 3.0, 30: 1.0})
    finish(exporter)
    assert run.names() == ["iter_0000030"] and run.best() == "iter_0000030"


def test_a_loss_that_is_no_number_is_the_worst():
    entries = [{"step": step, "validation_loss": loss, "kept": True} for step, loss in ((1, 9.0), (2, None), (3, 9.0))]
    assert losers(entries, 1, True, set()) == [1, 2], "of equal ones the newer stays"
    assert losers(entries, 1, True, {3}) == [2]
    assert losers(entries, 3, True, set()) == losers(entries, 0, True, set()) == []
    entries[0]["kept"] = False
    assert losers(entries, 1, True, set()) == [2]


def test_training_does_not_wait_and_one_is_converted_at_a_time(run):
    exporter = run.exporter()
    (run.folder / "exports" / "hold").touch()
    start_s = time.monotonic()
    for step in (10, 20):
        run.save(step)
        exporter.saved(step)
        exporter.advance()
    assert time.monotonic() - start_s < 2 and not run.names()
    while not (partial := [path.name for path in (run.folder / "exports").glob("*.partial")]):
        time.sleep(0.01)  # at its priority it may take a while to start
    assert partial == ["iter_0000010.partial"]
    (run.folder / "exports" / "hold").unlink()
    finish(exporter)
    assert run.names() == ["iter_0000010", "iter_0000020"]


def test_what_is_already_beaten_is_not_converted(run):
    """Three are owed after a kill; the newest goes first, and of the others one is better than it."""
    run.validate({10: 9.0, 20: 1.0, 25: 0.0, 30: 2.0})
    for step in (10, 20, 25, 30):
        run.save(step)
    finish(run.exporter())
    assert run.names() == ["iter_0000020", "iter_0000030"] and run.best() == "iter_0000020"
    assert run.index()[10] == {"step": 10, "folder": "iter_0000010", "validation_loss": 9.0, "kept": False}
    assert "step 10: not exported, for the exports that stay are better" in run.screen.getvalue()
    assert not (run.folder / "logs" / "export_10.log").exists()


def test_a_checkpoint_that_is_still_being_written_waits(run):
    exporter = run.exporter()
    run.save(10, is_whole=False)
    exporter.saved(10)
    time.sleep(0.2)
    exporter.advance()
    assert not list((run.folder / "exports").glob("iter_*"))
    run.save(10)
    exporter.advance()
    finish(exporter)
    assert run.names() == ["iter_0000010"]


def test_a_checkpoint_that_never_becomes_whole_is_not_waited_for_without_end(run, monkeypatch):
    monkeypatch.setattr(exports, "TRACKER_PATIENCE_S", 0.3)
    exporter = run.exporter()
    run.save(10, is_whole=False)
    exporter.saved(10)
    finish(exporter)
    assert "not exported, for it is not complete: " in run.screen.getvalue() and not run.names()


def test_a_failed_export_is_said_and_a_resume_tries_again(run, capfd):
    run.save(10)
    broken = run.folder / "checkpoints" / "iter_0000010" / "broken"
    broken.touch()
    exporter = run.exporter()
    finish(exporter)
    said = run.screen.getvalue()
    assert "the export of step 10 failed with code 1; see" in said and "tried again when the run is resumed" in said
    assert "the export of step 10 failed" in capfd.readouterr().err, "also in the rank's log"
    assert (run.folder / "logs" / "export_10.log").read_text() == "it is broken\n"
    assert run.index() == {}
    broken.unlink()
    (run.folder / "exports" / "iter_0000010.partial").rmdir()
    finish(run.exporter())
    assert run.names() == ["iter_0000010"]


def test_a_full_disk_does_not_stop_training(run, monkeypatch, capfd):
    def fail(*_):
        raise OSError(28, "No space left on device")

    run.save(10)
    (run.folder / "checkpoints" / "iter_0000010.bak").mkdir()  # nobody's business
    exporter = run.exporter()
    monkeypatch.setattr(exports, "write_index", fail)
    while exporter._process is not None:
        exporter.advance()
        time.sleep(0.01)
    assert "an export failed: [Errno 28] No space left on device. Training goes on" in run.screen.getvalue()
    assert "No space left" in capfd.readouterr().err
    monkeypatch.undo()
    finish(exporter)
    assert run.index()[10]["kept"]


def test_a_resume_takes_over_what_was_done_and_does_what_is_owed(run):
    """Killed: 10 exported and deleted, 20 exported but not yet in the index, 25 not due, 30 saved, half deleted 5."""
    run.validate({10: 9.0, 20: 3.0, 30: 2.0})
    for step in (10, 20, 25, 30):
        run.save(step)
    out = run.folder / "exports"
    (out / "iter_0000020").mkdir(parents=True)
    (out / ".deleted-iter_0000005").mkdir()
    gone = {"step": 10, "folder": "iter_0000010", "validation_loss": 9.0, "kept": False}
    vanished = {"step": 30, "folder": "iter_0000030", "validation_loss": 2.0, "kept": True}
    (out / "index.json").write_text(json.dumps([gone, vanished]))
    finish(run.exporter())
    assert run.names() == ["iter_0000020", "iter_0000030"] and run.best() == "iter_0000030"
    assert [entry["kept"] for entry in run.index().values()] == [False, True, True]
    assert not list(out.glob(".deleted-*"))


def test_a_run_that_goes_back_replaces_what_it_exported_behind(run):
    go_through(run, {10: 3.0, 20: 2.0})
    (run.folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("10")
    (run.folder / "exports" / "iter_0000020" / "config.json").write_text("of the former time")
    exporter = run.exporter()
    assert list(run.index()) == [10] and run.best() == "iter_0000010"
    run.save(20)
    exporter.saved(20)
    finish(exporter)
    assert (run.folder / "exports" / "iter_0000020" / "config.json").read_text() == "iter_0000020"
    assert list(run.index()) == [10, 20]


def test_a_run_folder_that_was_copied_with_its_links_followed_is_gone_on_in(run):
    go_through(run, {10: 3.0, 20: 2.0})
    (run.folder / "exports" / "best").unlink()
    (run.folder / "exports" / "best").mkdir()
    run.exporter()
    assert run.best() == "iter_0000020" and len(run.names()) == 2


def test_the_end_of_a_failed_run_ends_the_conversion(run):
    exporter = run.exporter()
    (run.folder / "exports" / "hold").touch()
    run.save(10)
    exporter.saved(10)
    exporter.stop()
    (run.folder / "exports" / "hold").unlink()
    time.sleep(0.2)
    assert not run.names()


def test_the_command_line_knows_the_words(tmp_path):
    for out, overwrite in ((tmp_path / "new", False), (tmp_path, True)):
        args = cli._parser().parse_args(conversion_words(tmp_path / "iter_0000010", out))
        assert (args.checkpoint, args.out, args.overwrite) == (tmp_path / "iter_0000010", out, overwrite)


def test_the_conversion_is_no_rank_and_takes_one_thread(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_PROCID", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    given = environment()
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_PROCID"} & set(given)
    assert given["OMP_NUM_THREADS"] == "1" and given["CUDA_VISIBLE_DEVICES"] == "" and given["PATH"]


@pytest.mark.parametrize(
    ("step", "nice", "scheduler"), [(10, 19, os.SCHED_IDLE), (30, os.getpriority(os.PRIO_PROCESS, 0), os.SCHED_OTHER)]
)
def test_the_conversion_has_the_lowest_priority_until_training_is_over(run, step, nice, scheduler):
    exporter = run.exporter()
    (run.folder / "exports" / "hold").touch()
    run.save(step)
    exporter.saved(step)
    pid = exporter._process.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == nice and os.sched_getscheduler(pid) == scheduler
    (run.folder / "exports" / "hold").unlink()
    finish(exporter)


def test_a_priority_that_cannot_be_had_is_done_without(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(exports.os, "setpriority", refuse)
    monkeypatch.setattr(exports.os, "sched_setscheduler", refuse)
    exports.lower_priority(os.getpid())
