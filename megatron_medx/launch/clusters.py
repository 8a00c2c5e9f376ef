"""Where `medx launch` sends a run: slurm/clusters/NAME.env, of which it reads the lines MEDX_LAUNCH_...

The file is bash, which the cluster's own shells run with all its `module load`s; a workstation must not. So the few
lines that say how to get there are read as text: NAME=value, quoted as in a shell, nothing expanded.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.config.problems import nearest
from megatron_medx.errors import ConfigError

CLUSTERS = Path("slurm") / "clusters"
EXAMPLE = "example"
"""The file that others are copied from; no cluster."""

KEYS = ("MEDX_LAUNCH_HOST", "MEDX_LAUNCH_USER", "MEDX_LAUNCH_FOLDER")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A place with Slurm, and how to get there."""

    name: str
    """Of its file, and so of MEDX_CLUSTER."""
    host: str | None
    """A login node, or an alias of ~/.ssh/config, which also says port, key and jump hosts; None is this machine."""
    user: str | None
    """There; None for what ~/.ssh/config says, or else the name here."""
    folder: str
    """Absolute path of the checkout there, with its environment, its data and its runs."""

    @property
    def place(self) -> str:
        """The machine that commands run on, for messages."""
        return f"{self.user}@{self.host}" if self.host and self.user else self.host or "this machine"


def read_cluster(checkout: Path, name: str) -> Cluster:
    """Read the file of a cluster.

    Args:
        checkout: in which slurm/clusters lies; the folder of a cluster that is this machine.
        name: of the file, without .env.

    Raises:
        ConfigError: there is no such file, or its lines for launching cannot be read.
    """
    path = checkout / CLUSTERS / f"{name}.env"
    names = sorted(file.stem for file in (checkout / CLUSTERS).glob("*.env") if file.stem != EXAMPLE)
    if name not in names:
        close = nearest(name, names)
        raise ConfigError(
            f"no {CLUSTERS / name}.env: unknown cluster {name}",
            f"one of {', '.join(names) or 'none yet'}",
            f"did you mean {close}?" if close else f"copy {CLUSTERS / EXAMPLE}.env to it, and commit it",
        )
    settings = _settings(path)
    host, folder = settings.get("MEDX_LAUNCH_HOST"), settings.get("MEDX_LAUNCH_FOLDER")
    if host is None:
        folder = str((checkout / (folder or ".")).resolve())
    if folder is None or not folder.startswith("/"):
        raise ConfigError(
            f"{path.name}: MEDX_LAUNCH_HOST={host} and " + (f"MEDX_LAUNCH_FOLDER={folder}" if folder else "no folder"),
            "the absolute path of a checkout there, on a file system that every node sees",
            f"make one (docs/cluster.md, Once), then MEDX_LAUNCH_FOLDER=/its/path in {CLUSTERS / path.name}",
        )
    return Cluster(name, host, settings.get("MEDX_LAUNCH_USER"), folder)


def _settings(path: Path) -> dict[str, str]:
    """The file's lines for launching that are no comments."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        assignment = re.fullmatch(r"\s*(?:export\s+)?(MEDX_LAUNCH_\w*)=(.*)", line)
        if assignment is None:
            continue
        key, text = assignment.groups()
        if key not in KEYS:
            raise ConfigError(
                f"{path.name}, line {number}: {key}", f"one of {', '.join(KEYS)}", "correct or remove the line"
            )
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # a quotation that does not end
            words = []
        if len(words) != 1 or not words[0] or "$" in text or "`" in text:
            raise ConfigError(
                f"{path.name}, line {number}: {line.strip()}",
                "one word, in which nothing is expanded: a workstation reads it as text",
                f"write what it stands for, as in {key}=value",
            )
        found[key] = words[0]
    return found
