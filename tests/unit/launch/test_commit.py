"""The commit of a clean checkout, and what a checkout that is not clean is refused for."""

import subprocess

import pytest

from megatron_medx.errors import ConfigError
from megatron_medx.launch.commit import clean_commit, find_checkout
from tests.slurm.launch_checkout import commit_all


@pytest.fixture
def repository(tmp_path):
    """A checkout of two files."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "pretrain.sh").write_text("true\n")
    (tmp_path / ".gitignore").write_text("/runs/\n")
    commit_all(tmp_path, "Its title\n\nand more")
    return tmp_path


def test_a_clean_checkout_is_its_commit(repository):
    (repository / "runs").mkdir()
    (repository / "runs" / "log").write_text("ignored")
    commit = clean_commit(repository)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True).stdout.strip()
    assert (commit.sha, commit.title, commit.num_files, commit.num_bytes) == (head, "Its title", 2, 5 + 7)
    assert commit.short == head[:12]


def test_files_that_are_not_committed_are_named(repository):
    (repository / "slurm" / "pretrain.sh").write_text("false\n")
    with pytest.raises(ConfigError, match=r"(?s)not committed: slurm/pretrain\.sh\n.*do:     git add and git commit"):
        clean_commit(repository)
    for number in range(6):
        (repository / f"new{number}.py").write_text("")
    with pytest.raises(ConfigError, match=r"new3\.py and 2 more"):
        clean_commit(repository)


def test_the_checkout_is_found_from_within(repository):
    assert find_checkout(repository / "slurm") == repository


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)lies in no checkout of Megatron-MedX.*not a git repository"):
        find_checkout(tmp_path)
    (tmp_path / "a").write_text("")
    commit_all(tmp_path, "Another project")
    with pytest.raises(ConfigError, match="lies in no checkout"):
        find_checkout(tmp_path)
