"""The final name never holds half a directory, and nothing that is not ours is replaced."""

from pathlib import Path

import pytest

from megatron_medx.checkpoint.writing.output_folder import check_free_space, new_folder
from megatron_medx.errors import CheckpointError


def make(out, source, *, overwrite=False, needed_bytes=0, content="new"):
    with new_folder(out, source=source, overwrite=overwrite, needed_bytes=needed_bytes) as unfinished:
        assert unfinished.folder != out
        (unfinished.folder / "config.json").write_text(content)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def test_the_folder_appears_when_complete(tmp_path, source):
    make(tmp_path / "deep" / "out", source)
    assert (tmp_path / "deep" / "out" / "config.json").read_text() == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_nothing(tmp_path, source, failure):
    out = tmp_path / "out"
    with pytest.raises(failure), new_folder(out, source=source, overwrite=False, needed_bytes=0) as unfinished:
        (unfinished.folder / "model.safetensors").write_text("half")
        raise failure
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_interrupted_overwrite_keeps_the_old(tmp_path, source):
    make(tmp_path / "out", source, content="old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", source=source, overwrite=True, needed_bytes=0):
        raise RuntimeError
    assert (tmp_path / "out" / "config.json").read_text() == "old"


def test_a_failing_rename_gives_the_old_its_name_back(tmp_path, source, monkeypatch):
    make(tmp_path / "out", source, content="old")
    rename = Path.rename

    def fail_for_the_new(self, target):
        if self.name == "content":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", source, overwrite=True)
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_what_a_killed_attempt_left_is_replaced(tmp_path, source):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale").write_text("x")
    make(tmp_path / "out", source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_an_existing_folder_is_refused_unless_told(tmp_path, source):
    make(tmp_path / "out", source, content="old")
    with pytest.raises(CheckpointError, match="out exists"):
        make(tmp_path / "out", source)
    make(tmp_path / "out", source, overwrite=True)
    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_strange_folder_is_never_replaced(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="neither a Hugging Face directory nor a Megatron checkpoint"):
        make(tmp_path / "out", source, overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_an_empty_folder_may_be_filled(tmp_path, source):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", source)
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("out", ["source", "."])
def test_the_source_is_never_the_target(tmp_path, source, out):
    with pytest.raises(CheckpointError, match="is, or contains, the source"):
        make(tmp_path / out, source, overwrite=True)


def test_too_little_disk_is_told_with_both_numbers(tmp_path, source):
    with pytest.raises(CheckpointError) as caught:
        make(tmp_path / "out", source, needed_bytes=10**18)
    assert "GB free" in caught.value.found and "1000000000.000 GB" in caught.value.needed
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    check_free_space(tmp_path, 1)


def test_a_target_below_a_file_is_refused(tmp_path, source):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be created"):
        make(tmp_path / "file" / "out", source)
