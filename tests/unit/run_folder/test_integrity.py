"""Checksums of checkpoints, and what a run goes on from when disks, kills or people have spoiled some of them."""

import hashlib
import inspect
import json
import os
import shutil

import pytest

from megatron_medx.config.checkpoint_folders import METADATA_FILE, TRACKER_FILE
from megatron_medx.errors import CheckpointError
from megatron_medx.run_folder import events, integrity
from megatron_medx.run_folder.integrity import (
    INTEGRITY_FILE,
    folder_name,
    link_latest,
    newest_sound,
    num_bytes,
    problems,
    write_integrity,
)


def save(checkpoints, step, is_summed=True, num_ranks=2, seed=0):
    """A checkpoint as Megatron leaves it: data files, their index, the word that it is whole, the tracker."""
    folder = checkpoints / folder_name(step)
    folder.mkdir(parents=True)
    names = [f"__{rank}_0.distcp" for rank in range(num_ranks)]
    for name in names:
        (folder / name).write_bytes(hashlib.sha256(f"{step} {name} {seed}".encode()).digest() * 1000)
    (folder / ".metadata").write_bytes(b"\x80\x04" + b"\x8c".join(name.encode() for name in names) + b".")
    (folder / METADATA_FILE).write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    (checkpoints / TRACKER_FILE).write_text(str(step))
    if is_summed:
        write_integrity(folder)
    return folder


@pytest.fixture
def run(tmp_path):
    """A run that saved at 5, 10 and 15, all with checksums."""
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (5, 10, 15):
        save(checkpoints, step)
    return checkpoints


class Screen(list):
    """Lines that were said."""

    def __call__(self, line):
        self.append(line)

    @property
    def text(self):
        return "\n".join(self)


def flip_byte(folder):
    path = folder / "__1_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder):
    os.truncate(folder / "__1_0.distcp", 100)


def test_the_format_is_megatrons(tmp_path):
    """Name of the file, algorithm and keys; what either side writes the other one verifies."""
    validation = pytest.importorskip("megatron.core.dist_checkpointing.validation")
    assert (INTEGRITY_FILE, integrity.ALGORITHM) == (validation.INTEGRITY_FNAME, validation._HASH_ALGORITHM)
    assert "{'algorithm': _HASH_ALGORITHM, 'files': manifest}" in inspect.getsource(validation.save_integrity_manifest)
    ours, theirs = save(tmp_path, 1), save(tmp_path, 2, is_summed=False)
    validation.verify_integrity_manifest(str(ours))
    validation.save_integrity_manifest(str(theirs))
    assert problems(theirs) == []
    flip_byte(ours), flip_byte(theirs)
    with pytest.raises(validation.CheckpointingException, match="hash mismatch"):
        validation.verify_integrity_manifest(str(ours))
    assert len(problems(theirs)) == 1 and problems(theirs)[0].startswith("__1_0.distcp has sha256 ")


def test_every_file_is_summed_but_the_sums_and_their_draft(tmp_path):
    folder = save(tmp_path, 5, is_summed=False)
    (folder / f".{INTEGRITY_FILE}.tmp").write_text("cut o")  # a process was killed while it wrote them
    write_integrity(folder)
    table = json.loads((folder / INTEGRITY_FILE).read_text())
    assert sorted(table["files"]) == [".metadata", "__0_0.distcp", "__1_0.distcp", METADATA_FILE]
    content = (folder / "__0_0.distcp").read_bytes()
    assert table["files"]["__0_0.distcp"] == hashlib.sha256(content).hexdigest()
    assert sorted(path.name for path in folder.iterdir()) == sorted([*table["files"], INTEGRITY_FILE])


def test_what_is_not_whole_gets_no_sums(tmp_path, capsys):
    folder = save(tmp_path, 5, is_summed=False)
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__0_0.distcp is missing(.|\n)*a whole checkpoint"):
        write_integrity(folder)
    assert integrity.main([str(folder)]) == 1 and "__0_0.distcp is missing" in capsys.readouterr().err
    assert not (folder / INTEGRITY_FILE).exists()


def test_sound_ones_are_left_as_they_are(run):
    screen, before = Screen(), sorted(run.rglob("*"))
    assert newest_sound(run, screen) == 15
    assert not screen and os.readlink(run / "latest") == "iter_0000015"
    assert sorted(path for path in run.rglob("*") if path.name != "latest" and "latest/" not in str(path)) == before
    assert events.read(run.parent) == []


DAMAGE = {
    "flipped byte": (flip_byte, "__1_0.distcp has sha256"),
    "truncated file": (truncate, "__1_0.distcp has sha256"),
    "emptied file": (lambda folder: os.truncate(folder / "__1_0.distcp", 0), "__1_0.distcp is empty"),
    "missing file": (lambda folder: (folder / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
    "missing metadata.json": (lambda folder: (folder / METADATA_FILE).unlink(), "metadata.json cannot be read"),
    "garbled metadata.json": (lambda folder: (folder / METADATA_FILE).write_text("{"), "metadata.json cannot be read"),
    "missing index": (lambda folder: (folder / ".metadata").unlink(), ".metadata cannot be read"),
    "emptied index": (lambda folder: os.truncate(folder / ".metadata", 0), ".metadata names no file"),
    "cut off sums": (lambda folder: os.truncate(folder / INTEGRITY_FILE, 40), "integrity.json cannot be read"),
    "sums of another kind": (
        lambda folder: (folder / INTEGRITY_FILE).write_text('{"algorithm": "md5", "files": {}}'),
        "integrity.json is of md5",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_newest_falls_back_to_the_one_before(run, what):
    damage, said = DAMAGE[what]
    damage(run / "iter_0000015")
    screen = Screen()
    assert newest_sound(run, screen) == 10
    assert (run / TRACKER_FILE).read_text() == "10" and os.readlink(run / "latest") == "iter_0000010"
    moved = run / "damaged-iter_0000015"
    assert moved.is_dir() and not (run / "iter_0000015").exists(), "it is kept, under a name that nobody resumes from"
    assert "WARNING" in screen.text and said in screen.text and str(moved) in screen.text
    (event,) = events.read(run.parent)
    assert event.items() >= {"event": "checkpoint_damaged", "step": 15, "moved_to": str(moved)}.items()
    assert any(said in phrase for phrase in event["problems"])


def test_a_file_that_cannot_be_read_is_damaged(run, monkeypatch):
    real = integrity._hash

    def on_a_bad_sector(path, advance):
        if path.parent.name == "iter_0000015" and path.name == "__1_0.distcp":
            raise OSError(5, "Input/output error")
        return real(path, advance)

    monkeypatch.setattr(integrity, "_hash", on_a_bad_sector)
    screen = Screen()
    assert newest_sound(run, screen) == 10
    assert "__1_0.distcp cannot be read (Input/output error)" in screen.text


def test_without_checksums_names_are_looked_at_and_it_is_said(run):
    (run / "iter_0000015" / INTEGRITY_FILE).unlink()
    screen = Screen()
    assert newest_sound(run, screen) == 15 and "has no integrity.json" in screen.text
    (run / "iter_0000015" / "__0_0.distcp").unlink()
    assert newest_sound(run, screen) == 10 and "__0_0.distcp is missing" in screen.text


def test_with_checksums_off_bytes_are_not_read(run):
    flip_byte(run / "iter_0000015")
    screen = Screen()
    assert newest_sound(run, screen, checksums=False) == 15 and not screen
    (run / "iter_0000015" / "__1_0.distcp").unlink()
    assert newest_sound(run, screen, checksums=False) == 10


@pytest.mark.parametrize("said", ["", "10", "1", "20", "1x", "\x00\x00"])
def test_a_tracker_that_says_something_else_is_corrected(run, said):
    """Cut off, old, or ahead of a folder that is missing."""
    (run / TRACKER_FILE).write_text(said)
    assert newest_sound(run, Screen()) == 15
    assert (run / TRACKER_FILE).read_text() == "15" and not list(run.glob(".*.tmp"))


def test_killed_between_the_first_checkpoint_and_its_tracker(tmp_path):
    save(tmp_path, 5, is_summed=False)
    (tmp_path / TRACKER_FILE).unlink()
    assert newest_sound(tmp_path, Screen()) == 5 and (tmp_path / TRACKER_FILE).read_text() == "5"


def test_a_save_that_was_cut_off_is_out_of_the_way_of_the_next_one(run):
    """Eight ranks were writing; two go on, and their files must be all that lies in the folder later."""
    (run / "iter_0000020").mkdir()
    for rank in range(8):
        (run / "iter_0000020" / f"__{rank}_0.distcp").write_bytes(b"half")
    screen = Screen()
    assert newest_sound(run, screen) == 15 and "was not finished" in screen.text
    assert not (run / "iter_0000020").exists() and (run / ".deleted-iter_0000020").is_dir()
    assert events.read(run.parent) == [], "nothing that was whole is lost"
    again = save(run, 20)
    assert len(json.loads((again / INTEGRITY_FILE).read_text())["files"]) == 4
    assert newest_sound(run, Screen()) == 20


def test_where_all_are_damaged_the_run_does_not_begin_anew(run):
    for folder in run.glob("iter_*"):
        flip_byte(folder)
    for _ in range(2):  # also when it is started again
        with pytest.raises(CheckpointError, match="no sound checkpoint; damaged: damaged-iter_0000005, ") as error:
            newest_sound(run, Screen())
        assert error.value.needed and "bring one back" in error.value.do
    assert len(events.read(run.parent)) == 3


def test_where_the_tracker_is_alone_the_run_does_not_begin_anew(run):
    for folder in run.glob("iter_*"):
        shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=f"although {TRACKER_FILE} is there"):
        newest_sound(run, Screen())


def test_a_run_that_has_saved_nothing_has_none(tmp_path):
    assert newest_sound(tmp_path / "none", Screen()) is None
    (tmp_path / "iter_0000005").mkdir()
    assert newest_sound(tmp_path, Screen()) is None and not (tmp_path / "iter_0000005").exists()


def test_the_same_step_damaged_twice_is_kept_twice(run):
    flip_byte(run / "iter_0000015")
    newest_sound(run, Screen())
    save(run, 15, seed=1)
    flip_byte(run / "iter_0000015")
    assert newest_sound(run, Screen()) == 10
    assert {path.name for path in run.glob("damaged-*")} == {"damaged-iter_0000015", "damaged-iter_0000015-2"}


def test_a_copy_that_followed_the_link_is_mended(run):
    link_latest(run, 10)
    copy = shutil.copytree(run, run.parent / "copy")
    assert (copy / "latest").is_dir() and not (copy / "latest").is_symlink()
    assert newest_sound(copy, Screen()) == 15
    assert os.readlink(copy / "latest") == "iter_0000015" and (copy / ".deleted-latest").is_dir()


def test_large_ones_say_how_far_the_reading_is(run, monkeypatch):
    monkeypatch.setattr(integrity, "LARGE_BYTES", 1000)
    seen, screen = [], Screen()

    @integrity.contextmanager
    def progress(label, total_bytes):
        seen.append((label, total_bytes))
        yield seen.append

    newest_sound(run, screen, progress=progress)
    folder = run / "iter_0000015"
    assert seen[0] == ("verify iter_0000015", num_bytes(folder))
    assert sum(seen[1:]) == num_bytes(folder) - (folder / INTEGRITY_FILE).stat().st_size
    assert "verifying the checksums of" in screen[0] and "0.0 GB" in screen[0] and "all files match" in screen[1]
