"""Carries errands to a cluster by nemo-run's tunnel and packager; a program in the environment that nemo-run needs.

Its pins clash with those of training, so `tunnel.py` starts this file with `.venv-launch/bin/python`, and nothing of
the package is imported here. In: a JSON object a line on stdin, `{"errand": name, **arguments}`. Out: one a line on
stdout, `{"answer": ...}`, or `{"failed": kind, "why": text}` for what a person can mend. It ends with its stdin.

Connections are made here, since nemo-run's own would ask for a password on a terminal, wait without limit, accept any
host key, and end the process where all that fails. ~/.ssh/config counts: alias, user, port, key, jump hosts.
"""

import json
import logging
import os
import socket
import sys
from pathlib import Path

import nemo_run
import paramiko
from fabric import Connection
from invoke.exceptions import CommandTimedOut

CONNECT_S = 10
"""Seconds that a host gets to answer, and again to show its banner, and again to accept a key."""

KEEP_ALIVE_S = 30
"""Seconds after which an idle connection says something, so that no firewall forgets it."""


class UnknownHostKey(paramiko.SSHException):
    """A host that ~/.ssh/known_hosts does not have."""


class NotCopied(Exception):
    """A file that could not be written there."""


KINDS = {
    UnknownHostKey: "unknown host key",
    paramiko.BadHostKeyException: "another host key",
    paramiko.AuthenticationException: "authentication",
    socket.gaierror: "unknown host",
    CommandTimedOut: "no answer in time",
    NotCopied: "not copied",
    paramiko.SSHException: "no connection",
    EOFError: "no connection",
    OSError: "no connection",
}
"""What goes wrong on the way, and what it is called; the first that fits."""


class KnownHosts(paramiko.MissingHostKeyPolicy):
    """Refuses hosts that are not known; fabric would take any."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Called by paramiko."""
        raise UnknownHostKey(f"{hostname} is not in ~/.ssh/known_hosts")


class Courier:
    """Its public methods are the errands.

    Args:
        host: a login node; None for this machine.
        user: there; None for what ~/.ssh/config says.
    """

    def __init__(self, host: str | None, user: str | None):
        self._is_local = host is None
        self._tunnel = (
            nemo_run.LocalTunnel(job_dir="") if host is None else nemo_run.SSHTunnel(job_dir="", host=host, user=user)
        )

    def package(self, checkout: str, sha: str, folder: str) -> str:
        """Put a commit into an archive in a folder of this machine; return its path."""
        packager = nemo_run.GitArchivePackager(ref=sha, include_submodules=False)
        return packager.package(Path(checkout), folder, sha)

    def put(self, source: str, target: str) -> None:
        """Copy a file there."""
        self._connect()
        try:
            self._tunnel.put(source, target)
        except OSError as error:
            raise NotCopied(f"{target}: {error}") from error

    def run(self, command: str, timeout_s: float) -> dict:
        """Run a command there; return its exit code and what it wrote: `code`, `out`, `err`."""
        self._connect()
        done = self._tunnel.run(command, warn=True, timeout=timeout_s, in_stream=False)
        return {"code": done.exited, "out": done.stdout, "err": done.stderr}

    def _connect(self) -> None:
        """Have a connection, also where one was lost; `SSHTunnel` takes the one that it finds in its `session`."""
        if self._is_local or (self._tunnel.session and self._tunnel.session.is_connected):
            return
        connection = Connection(
            self._tunnel.host,
            user=self._tunnel.user,
            connect_timeout=CONNECT_S,
            connect_kwargs={"banner_timeout": CONNECT_S, "auth_timeout": CONNECT_S},
        )
        hop = connection
        while isinstance(hop, Connection):  # and then the hosts that it jumps over, or a ProxyCommand
            hop.client.load_system_host_keys()
            hop.client.set_missing_host_key_policy(KnownHosts())
            hop = hop.gateway
        connection.open()
        connection.transport.set_keepalive(KEEP_ALIVE_S)
        self._tunnel.session = connection


def main() -> None:
    """Answer one errand after the other."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nemo-run and git print what nobody asked for
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # which logs the traceback of what it raises
    courier = Courier(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = {"answer": getattr(courier, arguments.pop("errand"))(**arguments)}
        except tuple(KINDS) as error:
            name = next(name for kind, name in KINDS.items() if isinstance(error, kind))
            answer = {"failed": name, "why": _first_line(error)}
        answers.write(json.dumps(answer) + "\n")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    main()
