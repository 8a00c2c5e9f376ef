"""Files that hosts write for one another: seen, late, wrong, missing."""

import threading
import time

import pytest

from megatron_medx.preflight import shared_files
from megatron_medx.preflight.shared_files import look_for_others, remove_all, write_own

HOSTS = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(shared_files, "VISIBLE_S", 0.3)


def test_all_files_are_seen_and_then_removed(tmp_path):
    for host in HOSTS:
        write_own(tmp_path, host, "t1")
    assert all(look_for_others(tmp_path, host, HOSTS, "t1") == {} for host in HOSTS)
    remove_all(tmp_path, HOSTS)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_and_one_of_another_attempt(tmp_path):
    write_own(tmp_path, "b", "t0")
    wrong = look_for_others(tmp_path, "a", HOSTS, "t1")
    assert wrong == {"b": "not what b wrote (5 bytes)", "c": "missing"}


def test_a_file_that_comes_late_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files, "VISIBLE_S", 20.0)
    write_own(tmp_path, "b", "t1")
    timer = threading.Timer(0.2, write_own, (tmp_path, "c", "t1"))
    timer.start()
    start = time.monotonic()
    assert look_for_others(tmp_path, "a", HOSTS, "t1") == {}
    assert 0.1 < time.monotonic() - start < 15
    timer.join()


def test_of_many_hosts_each_reads_those_behind_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files, "MOST_READ", 2)
    hosts = ["a", "b", "c", "d"]
    assert list(look_for_others(tmp_path, "c", hosts, "t1")) == ["d", "a"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        write_own(tmp_path / "file", "a", "t1")
    with pytest.raises(FileNotFoundError):
        write_own(tmp_path / "not" / "mounted", "a", "t1")
    assert not (tmp_path / "not").exists()
    remove_all(tmp_path / "file", ["a"])
