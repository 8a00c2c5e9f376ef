"""Where a task of the preflight stands among all: read from Slurm's environment, or one process alone without it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

PORTS = 10_000
"""First of 10,000 ports, one for a job id: below those of training (20,000 and up) and of outgoing connections."""

WHOLE_S = 100.0
"""Seconds for everything, from the moment that rank 0 has imported torch: all must be over within two minutes."""


@dataclass(frozen=True, slots=True)
class Place:
    """One task of the preflight; a task is a rank, and has one GPU where there are any."""

    rank: int
    size: int
    """Tasks in all."""
    local_rank: int
    """Number of this task on its host, and of its GPU."""
    host: str
    tasks_by_host: dict[str, int]
    """Host -> tasks that Slurm starts there; empty where Slurm does not say."""
    address: str
    """Host of rank 0, where all meet."""
    port: int
    attempt: str
    """What all tasks of one srun share and no other has: a job may hold several, and may be requeued."""


def place_of(environ: Mapping[str, str], hostname: str) -> Place:
    """Return the place that `srun` gave this task; without SLURM_PROCID it is alone, and the port is any free one.

    Args:
        environ: of the process. SLURMD_NODENAME names the host: of emulated nodes the host name is the same.
        hostname: of the machine, where Slurm says nothing.
    """
    if "SLURM_PROCID" not in environ or "SLURM_NTASKS" not in environ:
        return Place(0, 1, 0, hostname, {}, "127.0.0.1", 0, "alone")
    hosts = expand_hosts(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", ""))
    tasks = expand_tasks(environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", ""))
    size = int(environ["SLURM_NTASKS"])
    is_known = len(hosts) == len(tasks) and sum(tasks) == size
    return Place(
        rank=int(environ["SLURM_PROCID"]),
        size=size,
        local_rank=int(environ.get("SLURM_LOCALID", 0)),
        host=environ.get("SLURMD_NODENAME", hostname),
        tasks_by_host=dict(zip(hosts, tasks, strict=True)) if is_known else {},
        address=environ.get("MASTER_ADDR") or (hosts[0] if hosts else "127.0.0.1"),
        port=meeting_port(environ),
        attempt=".".join(environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID")),
    )


def meeting_port(environ: Mapping[str, str]) -> int:
    """MASTER_PORT - 10,000 where that is set, else 10,000 + job id modulo 10,000: never the port that training takes.

    A rank that was killed may still have its port, and that of the next start is MASTER_PORT + 1 in slurm/pretrain.sh.
    """
    given = environ.get("MASTER_PORT", "")
    if not given.isdecimal():
        return PORTS + int(environ.get("SLURM_JOB_ID", 0)) % 10_000
    return int(given) - 10_000 if int(given) >= 10_000 + 1024 else int(given) + 1  # below 1024 ports are the system's


def expand_hosts(text: str) -> list[str]:
    """Return the hosts of a list as Slurm writes it; `scontrol show hostnames` is missing inside containers.

    `a[1-3,07],b` -> a1 a2 a3 a07 b; zeros in front stay, and several brackets in one name are all expanded.
    """
    hosts = []
    for name in re.findall(r"(?:\[[^]]*\]|[^,\[])+", text):
        made = [""]
        for outside, inside in re.findall(r"([^\[\]]+)|\[([^]]*)\]", name):
            parts = [outside] if outside else [number for span in inside.split(",") for number in _numbers(span)]
            made = [start + part for start in made for part in parts]
        hosts += made
    return hosts


def _numbers(span: str) -> list[str]:
    first, _, last = span.partition("-")
    if not last:
        return [first]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def expand_tasks(text: str) -> list[int]:
    """Return tasks by host of what Slurm writes: `8(x2),4` -> 8 8 4."""
    return [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]
