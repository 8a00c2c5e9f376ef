"""A commit on a cluster, and slurm/pretrain.sh submitted from it.

Each launched commit has a copy in `.launched/COMMIT` of the checkout there, made once. It shares that checkout's
environment, data and runs by links, so that a run goes on where it was whatever commit is launched next. The copy's own
code is what runs: PYTHONPATH comes before the installed package, also in the job, which inherits it.
"""

import re
import shlex
import uuid
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.config.files import COMMIT_FILE
from megatron_medx.errors import ConfigError
from megatron_medx.launch.clusters import CLUSTERS, Cluster
from megatron_medx.launch.commit import SCRIPT, Commit
from megatron_medx.launch.tunnel import Done, Tunnel

LAUNCHED = ".launched"
RUNS = "runs"
SHARED = (".venv", "data", RUNS, "checkpoints", "hf", "corpora")
"""What a copy takes from the checkout that it lies in."""

SUBMIT_S = 300
"""Seconds that slurm/pretrain.sh may check: it imports `medx` on a login node and asks Slurm."""

SUBMITTED = re.compile(r"^job (?P<number>\d+) is submitted, (?P<nodes>\d+) nodes; its state: medx status (?P<run>.+)$")
TESTED = re.compile(r"^nothing is submitted, (?P<nodes>\d+) nodes would be; its folder: (?P<run>.+)$")
"""The last line of slurm/pretrain.sh."""

REFUSED = re.compile(r"^found:  (.*?)\nneeded: (.*?)\ndo:     (.*)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Copy:
    """The copy of a commit on a cluster."""

    cluster: Cluster
    commit: Commit

    @property
    def folder(self) -> str:
        """Where it lies."""
        return f"{self.cluster.folder}/{LAUNCHED}/{self.commit.short}"

    def log(self, number: str = "%j") -> str:
        """What a job prints, all starts of it."""
        return f"{self.cluster.folder}/{LAUNCHED}/slurm-{number}.out"

    def path(self, run: str) -> str:
        """Of a run folder there, as one types it."""
        return f"{self.cluster.folder}/{run}" if not run.startswith("/") else run

    def within(self, script: str) -> str:
        """The script in the copy, with its code and the cluster's settings."""
        code = shlex.quote(self.folder)
        return f"cd {code} && export MEDX_CLUSTER={shlex.quote(self.cluster.name)} PYTHONPATH={code} && {script}"

    def submission(self, options: tuple[str, ...], words: tuple[str, ...]) -> str:
        """The script that submits: options of sbatch, then a recipe with overrides."""
        return self.within(shlex.join([SCRIPT, f"--output={self.log()}", *options, *words]))


@dataclass(frozen=True, slots=True)
class Submitted:
    """What slurm/pretrain.sh took."""

    number: str
    """Of the Slurm job; empty where it was only checked."""
    nodes: int
    run: str
    """Its folder, as seen from the copy."""


def look(tunnel: Tunnel, copy: Copy) -> set[str]:
    """Return which of `folder`, `writable`, `copied`, `sbatch` and `slurm` (it answers) there is on the cluster."""
    folder = shlex.quote(copy.cluster.folder)
    tests = {
        "folder": f"[[ -d {folder} ]]",
        "writable": f"[[ -w {folder} ]]",
        "copied": f"[[ -d {shlex.quote(copy.folder)} ]]",
        "sbatch": "command -v sbatch > /dev/null",
        "slurm": "timeout 10 sinfo --noheader > /dev/null 2>&1",
    }
    done = tunnel.run("".join(f"if {test}; then echo has {name}; fi\n" for name, test in tests.items()))
    return set(re.findall(r"^has (\w+)$", done.out, re.MULTILINE))


def check_place(copy: Copy, has: set[str]) -> None:
    """Refuse a folder that is not there or cannot be written.

    Args:
        copy: to be made.
        has: what `look` returned.

    Raises:
        ConfigError: as said.
    """
    cluster = copy.cluster
    if "folder" not in has:
        raise ConfigError(
            f"no folder {cluster.folder} on {cluster.place}",
            "a checkout there with its environment",
            f"git clone and make env there, or correct MEDX_LAUNCH_FOLDER in {CLUSTERS / cluster.name}.env",
        )
    if "writable" not in has:
        raise ConfigError(
            f"{cluster.folder} on {cluster.place} cannot be written",
            "a checkout of yours",
            f"make one there, and name it as MEDX_LAUNCH_FOLDER in {CLUSTERS / cluster.name}.env",
        )


def check_slurm(copy: Copy, has: set[str]) -> None:
    """Refuse a place where nothing can be submitted; arguments and error as of `check_place`."""
    file = CLUSTERS / f"{copy.cluster.name}.env"
    if "sbatch" not in has:
        raise ConfigError(
            f"no sbatch on the PATH of a login shell of {copy.cluster.place}",
            "a login node of a Slurm cluster",
            f"name one as MEDX_LAUNCH_HOST in {file}, or load Slurm in the shell's start-up file there",
        )
    if "slurm" not in has:
        raise ConfigError(
            f"Slurm does not answer sinfo on {copy.cluster.place}",
            "a running Slurm",
            "ask who runs the cluster; on a machine for trying: tests/slurm/cluster up",
        )


def copy_commit(tunnel: Tunnel, checkout: Path, copy: Copy) -> None:
    """Make the copy of a commit, whole or not at all.

    Raises:
        ConfigError: it cannot be written there.
    """
    folder, launched = shlex.quote(copy.cluster.folder), shlex.quote(f"{copy.cluster.folder}/{LAUNCHED}")
    archive = f"{copy.cluster.folder}/{LAUNCHED}/{copy.commit.short}.{uuid.uuid4().hex[:8]}.tar.gz"
    _succeed(copy, tunnel.run(f"mkdir -p {launched}"))
    tunnel.put_commit(checkout, copy.commit.sha, archive)
    packed, target = shlex.quote(archive), shlex.quote(copy.folder)
    script = f"""set -e
part="$(mktemp --directory {launched}/.part-XXXXXX)"
trap 'rm -rf "$part" {packed}' EXIT
chmod --reference={folder} "$part"
tar --extract --gzip --file={packed} --directory="$part"
echo {copy.commit.sha} > "$part/{COMMIT_FILE}"
mkdir -p {folder}/{RUNS}
for name in {shlex.join(SHARED)}; do
    [[ -e "$part/$name" ]] || ln --symbolic {folder}/"$name" "$part/$name"
done
mv --no-target-directory "$part" {target} || [[ -d {target} ]] # another launch was faster
"""
    _succeed(copy, tunnel.run(script, timeout_s=SUBMIT_S))


def submit(tunnel: Tunnel, copy: Copy, options: tuple[str, ...], words: tuple[str, ...]) -> Submitted:
    """Have slurm/pretrain.sh check a run on the login node and submit it; with --test-only in the options only check.

    Raises:
        ConfigError: what it refuses, in its own three parts.
    """
    done = tunnel.run(copy.submission(options, words), timeout_s=SUBMIT_S)
    last = done.out.strip().rpartition("\n")[2]
    told = (TESTED if "--test-only" in options else SUBMITTED).match(last)
    if done.code == 0 and told:
        return Submitted(told.groupdict().get("number", ""), int(told["nodes"]), told["run"])
    refused = REFUSED.search(done.err)
    if refused:
        found, needed, do = (part.strip() for part in refused.groups())
        raise ConfigError(f"on {copy.cluster.place}: {found}", needed, do)
    raise ConfigError(
        f"{SCRIPT} on {copy.cluster.place} ended with code {done.code}: {_last_line(done)}",
        "a job that is submitted",
        f"there, in {copy.folder}: MEDX_CLUSTER={copy.cluster.name} {SCRIPT} --test-only {shlex.join(words)}; where "
        "a package is missing or too old, make env in the checkout there",
    )


def _succeed(copy: Copy, done: Done) -> None:
    if done.code:
        raise ConfigError(
            f"commit {copy.commit.short} could not be copied to {copy.cluster.place}: {_last_line(done)}",
            f"a {copy.cluster.folder} that can be written, and room",
            "look at its owner, the disk and the quota there",
        )


def _last_line(done: Done) -> str:
    lines = (done.err.strip() or done.out.strip()).splitlines()
    return lines[-1] if lines else "it said nothing"
