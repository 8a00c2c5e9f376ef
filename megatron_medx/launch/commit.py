"""The commit that is launched: all of a checkout, so that what runs can be found again."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.errors import ConfigError

SCRIPT = "slurm/pretrain.sh"
MOST_NAMED = 5
"""Files that a refusal names."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit, and how much there is of it to copy."""

    sha: str
    title: str
    num_files: int
    num_bytes: int

    @property
    def short(self) -> str:
        """What its copy on the cluster is called."""
        return self.sha[:12]


def find_checkout(folder: Path) -> Path:
    """Return the root of the checkout that a folder lies in.

    Raises:
        ConfigError: it lies in none.
    """
    done = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=False
    )
    root = Path(done.stdout.strip())
    if done.returncode or not (root / SCRIPT).is_file():
        by_git = f": {done.stderr.strip().splitlines()[0]}" if done.stderr.strip() else ""
        raise ConfigError(
            f"{folder} lies in no checkout of Megatron-MedX{by_git}",
            "a commit to launch",
            "cd to the checkout, then again",
        )
    return root


def clean_commit(checkout: Path) -> Commit:
    """Return the commit that the files of a checkout are.

    Raises:
        ConfigError: files differ from it, or are not in it: what runs would not be what is seen here.
    """
    changed = _git(checkout, "status", "--porcelain").splitlines()
    if changed:
        named = ", ".join(line[3:] for line in changed[:MOST_NAMED])
        more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
        raise ConfigError(
            f"not committed: {named}{more}",
            "files as they are in a commit, which is what is copied",
            "git add and git commit them, or git stash --include-untracked; a push is not needed",
        )
    sha, title = _git(checkout, "show", "--no-patch", "--format=%H%n%s").splitlines()[:2]
    sizes = [line.split()[3] for line in _git(checkout, "ls-tree", "-r", "--long", "HEAD").splitlines()]
    return Commit(sha, title, len(sizes), sum(int(size) for size in sizes if size != "-"))


def _git(checkout: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True).stdout
