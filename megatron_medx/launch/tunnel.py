"""The way to a cluster, as the package sees it: commands, files and a packed commit, carried by `courier.py`.

nemo-run's SSHTunnel, LocalTunnel and GitArchivePackager do the work, in an environment of their own. Its SlurmExecutor
does not: that submits a batch script of its own which starts ours as a command under srun, so Slurm's signals, the
requeueing and the `#SBATCH` lines of slurm/pretrain.sh would not reach it, and its status says PENDING or UNKNOWN where
the job has failed. What is submitted here is slurm/pretrain.sh, by itself, on the cluster.
"""

import json
import os
import select
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.errors import ConfigError
from megatron_medx.launch.clusters import CLUSTERS, Cluster

ENVIRONMENT = ".venv-launch"
COURIER = Path(__file__).with_name("courier.py")
GRACE_S = 45
"""Beyond the time that an errand may take itself: to import nemo-run (3 s; 20 s on a busy machine) and to connect."""

COMMAND_S, COPY_S = 60, 600

ADVICE = {
    "authentication": ("a key that the host accepts, in ~/.ssh or in an agent", "make `ssh -o BatchMode=yes {}` work"),
    "unknown host key": ("a host whose key was accepted before", "ssh {} once by hand and look at the key it shows"),
    "another host key": ("the key that ~/.ssh/known_hosts has", "ask who runs the host why it changed"),
    "unknown host": ("a name that can be looked up from here", "correct MEDX_LAUNCH_HOST in {file}"),
    "no connection": (
        "a host that answers ssh",
        "look why `ssh {}` fails: network, VPN, port, jump host",
    ),
    "not copied": ("room, and the right to write there", "look at the disk and the quota there"),
    "no answer in time": ("a cluster that answers", "try again; `ssh {}` shows whether it is slow"),
}
"""What goes wrong on the way (courier.KINDS) -> what is needed, and what to do; {} is the host."""


class NoAnswer(ConfigError):
    """An errand did not get there or back; the next one may."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Tunnel:
    """Runs commands on a cluster; a context that ends the courier.

    Args:
        checkout: whose environment for launching is used.
        cluster: to go to.

    Raises:
        ConfigError: the environment is not there.
    """

    def __init__(self, checkout: Path, cluster: Cluster):
        self.cluster = cluster
        self._python = checkout / ENVIRONMENT / "bin" / "python"
        if not self._python.is_file():
            raise ConfigError(
                f"no {ENVIRONMENT} in {checkout}",
                "nemo-run, in an environment of its own: its pins clash with those of training",
                "make launch-env",
            )
        self._courier: subprocess.Popen | None = None
        self._log = tempfile.TemporaryFile("w+")

    def __enter__(self) -> "Tunnel":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._log.close()

    def run(self, script: str, timeout_s: float = COMMAND_S) -> Done:
        """Run a script by a login shell of the cluster, which has Slurm on its PATH.

        Raises:
            NoAnswer: no connection, or no end in time.
        """
        return Done(
            **self._ask(timeout_s, "run", command=f"bash --login -c {shlex.quote(script)}", timeout_s=timeout_s)
        )

    def put_commit(self, checkout: Path, sha: str, target: str) -> None:
        """Copy an archive of a commit to a path on the cluster.

        Raises:
            NoAnswer: no connection, or not in time.
        """
        with tempfile.TemporaryDirectory() as folder:
            archive = self._ask(COPY_S, "package", checkout=str(checkout), sha=sha, folder=folder)
            self._ask(COPY_S, "put", source=archive, target=target)

    def _ask(self, limit_s: float, errand: str, **arguments: object) -> object:
        """Have an errand done; a courier that does not come back is ended, and the next errand gets another one."""
        courier = self._courier = self._courier or self._start()
        try:
            courier.stdin.write(json.dumps({"errand": errand, **arguments}) + "\n")
            ready, _, _ = select.select([courier.stdout], [], [], limit_s + GRACE_S)
            line = courier.stdout.readline() if ready else None
        except BrokenPipeError:
            line = ""
        if line is None:
            self._end()
            raise self._no_answer("no answer in time", f"nothing for {limit_s + GRACE_S:.0f} s")
        if not line:
            code = courier.wait()
            self._log.seek(0)
            raise RuntimeError(f"{COURIER.name} ended with code {code} at {errand}:\n{self._log.read()[-3000:]}")
        told = json.loads(line)
        if "failed" in told:
            raise self._no_answer(told["failed"], told["why"])
        return told["answer"]

    def _start(self) -> subprocess.Popen:
        # a job that starts this one is none of Slurm's business there; Ctrl-C is for the process that waits, not for it
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"
        }
        where = json.dumps({"host": self.cluster.host, "user": self.cluster.user})
        return subprocess.Popen(
            [self._python, "-P", COURIER, where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
            bufsize=1,
            start_new_session=True,
        )

    def _end(self) -> None:
        if self._courier is not None:
            self._courier.kill()
            self._courier.communicate()
            self._courier = None

    def _no_answer(self, kind: str, why: str) -> NoAnswer:
        needed, do = ADVICE[kind]
        file = CLUSTERS / f"{self.cluster.name}.env"
        host = self.cluster.place if self.cluster.host else "the machine"
        return NoAnswer(f"{self.cluster.place}: {kind}: {why}", needed, do.format(host, file=file))
