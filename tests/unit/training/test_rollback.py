"""Going back behind bad steps: which checkpoint, which rows, in which order, and when the run stops instead."""

import json
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from megatron_medx.errors import DataError
from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder import events
from megatron_medx.run_folder.skipped_rows import SkippedRows, add_skip, read_skips
from megatron_medx.training.interruption import StartAgain


@pytest.fixture(scope="module")
def rollback():
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    from megatron_medx.training import rollback

    return rollback


@pytest.fixture(autouse=True)
def alone(rollback, monkeypatch):
    """torch.distributed with this process as the only rank, and no save under way."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(rollback.megatron_loop, "maybe_finalize_async_save", lambda blocking: None)
    yield
    dist.destroy_process_group()


def save(checkpoints, *steps, whole=True):
    for step in steps:
        folder = checkpoints / f"iter_{step:07d}"
        folder.mkdir(parents=True)
        (folder / "of").write_text(str(step))
        if whole:
            (folder / "metadata.json").write_text("{}")
            (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))


@pytest.fixture
def run(rollback, tmp_path):
    """A run of 4 rows a step; (start, folder, checkpoints)."""
    config = get_recipe("demo")
    config.training.on_bad_loss, config.training.global_batch_rows = "rollback", 4
    config.survival.bad_steps, config.survival.max_rollbacks = 2, 2
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    return SimpleNamespace(
        start=lambda: rollback.Rollback(config, tmp_path, is_reporter=True), folder=tmp_path, checkpoints=checkpoints
    )


def go_bad(rollback, *steps):
    for step in steps:
        rollback.bad_step(step, 4 * (step - 1), f"step {step}: loss nan in samples a")


def names(checkpoints):
    return sorted(path.name for path in checkpoints.iterdir() if path.is_dir())


def tracker(checkpoints):
    return (checkpoints / "latest_checkpointed_iteration.txt").read_text()


def test_bad_steps_in_succession_are_gone_back_behind(run):
    save(run.checkpoints, 1, 3, 5)
    rollback = run.start()
    go_bad(rollback, 5)
    with pytest.raises(StartAgain, match="rolled back to step 3; rows 16 to 23 are left out"):
        go_bad(rollback, 6)
    assert tracker(run.checkpoints) == "3"
    assert names(run.checkpoints) == ["iter_0000001", "iter_0000003", "rolled-back-iter_0000005"]
    assert read_skips(run.checkpoints) == [SkippedRows(16, 23, from_step=6)]
    [event] = events.read(run.folder)
    del event["time"]
    assert event == {
        "event": "rolled_back", "to_step": 3, "from_step": 6, "first_row": 16, "last_row": 23,
        "why": "2 bad steps in succession, the last: step 6: loss nan in samples a",
    }  # fmt: skip


def test_a_sound_step_between_bad_ones_ends_the_count(run):
    rollback = run.start()
    go_bad(rollback, 2)
    rollback.good_step()
    go_bad(rollback, 4)
    with pytest.raises(StartAgain):
        go_bad(rollback, 5)
    assert read_skips(run.checkpoints) == [SkippedRows(12, 19, from_step=5)]


def test_without_a_checkpoint_before_them_the_run_begins_anew(run):
    save(run.checkpoints, 2)
    (run.checkpoints / "latest").symlink_to("iter_0000002")
    rollback = run.start()
    go_bad(rollback, 1)
    with pytest.raises(StartAgain, match="rolled back to the start: no checkpoint is older"):
        go_bad(rollback, 2)
    assert names(run.checkpoints) == ["rolled-back-iter_0000002"]
    assert [path.name for path in run.checkpoints.glob("latest*")] == []
    assert events.read(run.folder)[0]["to_step"] == 0


def test_a_checkpoint_that_is_not_whole_is_not_chosen(run):
    save(run.checkpoints, 2)
    save(run.checkpoints, 3, whole=False)
    rollback = run.start()
    go_bad(rollback, 4)
    with pytest.raises(StartAgain, match="to step 2"):
        go_bad(rollback, 5)
    assert tracker(run.checkpoints) == "2"


def test_a_second_rollback_counts_positions_behind_the_first_ones_rows(run):
    """The same steps again, with other rows; an aside name that is taken gets a number."""
    save(run.checkpoints, 1)
    for _ in range(2):
        save(run.checkpoints, 2)
        rollback = run.start()
        go_bad(rollback, 2)
        with pytest.raises(StartAgain):
            go_bad(rollback, 3)
    assert read_skips(run.checkpoints) == [SkippedRows(4, 11, from_step=3), SkippedRows(12, 19, from_step=3)]
    assert names(run.checkpoints) == ["iter_0000001", "rolled-back-iter_0000002", "rolled-back-iter_0000002-2"]


def test_rows_on_both_sides_of_skipped_ones_are_one_range(run):
    add_skip(run.checkpoints, SkippedRows(8, 9, from_step=2))
    rollback = run.start()
    go_bad(rollback, 2)
    with pytest.raises(StartAgain, match="rows 4 to 13"):
        go_bad(rollback, 3)


def test_after_so_many_rollbacks_the_run_stops(run):
    save(run.checkpoints, 1)
    for step in (6, 9):
        add_skip(run.checkpoints, SkippedRows(4 * step, 4 * step + 3, from_step=step))
    rollback = run.start()
    go_bad(rollback, 2)
    with pytest.raises(DataError) as raised:
        go_bad(rollback, 3)
    assert "step 3: loss nan in samples a; rollbacks so far: 2 (at steps 6, 9)" in raised.value.found
    assert raised.value.needed == "at most 2 rollbacks, survival.max_rollbacks"
    assert "bad_steps.jsonl" in raised.value.do and "--resume goes on from the checkpoint of step 1" in raised.value.do
    assert len(read_skips(run.checkpoints)) == 2 and events.read(run.folder) == []


def test_a_run_killed_amid_a_rollback_would_meet_the_same_rows_again(run, rollback, monkeypatch):
    """Checkpoints are set aside before rows are: nothing is left out that was not gone back behind."""
    save(run.checkpoints, 1, 2)
    seen = []
    monkeypatch.setattr(
        rollback, "add_skip", lambda *_: seen.append((names(run.checkpoints), tracker(run.checkpoints)))
    )
    begun = run.start()
    go_bad(begun, 2)
    with pytest.raises(StartAgain):
        go_bad(begun, 3)
    assert seen == [(["iter_0000001", "rolled-back-iter_0000002"], "1")]


def test_a_full_disk_is_every_ranks_error(run, rollback, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rollback, "add_skip", full)
    begun = run.start()
    go_bad(begun, 2)
    with pytest.raises(OSError, match="No space left") as raised:
        go_bad(begun, 3)
    assert raised.value.errno == 28 and events.read(run.folder) == []


def test_a_line_of_the_file_is_what_its_module_says(run):
    add_skip(run.checkpoints, SkippedRows(8, 15, from_step=4))
    assert json.loads((run.checkpoints / "skipped_rows.jsonl").read_text()) == {"first": 8, "last": 15, "from_step": 4}
