"""Whether the run folder is one file system for all hosts: each writes a file, others must read it, whole and soon."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_medx.run_folder.names import PREFLIGHT

VISIBLE_S = 8.0
"""Seconds after which a file of another host must be seen. NFS may serve a folder's old contents for 3 s by default
(acdirmin in nfs(5), up to 60 s when the folder has long been still), but a name that it never looked for is asked for.
"""

MOST_READ = 64
"""Files that a host reads: those of the hosts behind it, in a circle. More would be a million opens for 1,000 hosts."""


def write_own(folder: Path, host: str, token: str) -> None:
    """Write this host's file and have it on the disk.

    Raises:
        OSError: the folder cannot be written here, or is missing: it is not made, or the place where a disk is not
            mounted would get one.
    """
    (folder / PREFLIGHT).mkdir(exist_ok=True)
    with open(_path(folder, host), "w") as file:
        file.write(_content(host, token))
        file.flush()
        os.fsync(file.fileno())


def look_for_others(folder: Path, host: str, hosts: Sequence[str], token: str) -> dict[str, str]:
    """Read the files of the hosts behind this one, again and again until VISIBLE_S is over.

    Args:
        folder: of the run.
        host: this one.
        hosts: all, in an order that all share.
        token: that all write in this attempt, and in no other.

    Returns:
        Host -> what is wrong with its file as seen from here; empty where all is well.
    """
    here = hosts.index(host)
    open_ones = [*hosts[here + 1 :], *hosts[:here]][:MOST_READ]
    deadline = time.monotonic() + VISIBLE_S
    while True:
        wrong = {other: problem for other in open_ones if (problem := _problem(folder, other, token))}
        if not wrong or time.monotonic() > deadline:
            return wrong
        open_ones = list(wrong)
        time.sleep(0.1)


def remove_all(folder: Path, hosts: Sequence[str]) -> None:
    """Remove the files of all hosts, and the folder.

    What cannot be removed stays and harms nothing: NFS keeps a deleted file, renamed, while another host has it open;
    and a disk in trouble has been named by then.
    """
    with contextlib.suppress(OSError):
        for host in hosts:
            _path(folder, host).unlink(missing_ok=True)
        (folder / PREFLIGHT).rmdir()


def _problem(folder: Path, host: str, token: str) -> str:
    try:
        text = _path(folder, host).read_text()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return str(error)
    return "" if text == _content(host, token) else f"not what {host} wrote ({len(text)} bytes)"


def _path(folder: Path, host: str) -> Path:
    return folder / PREFLIGHT / f"{host}.txt"


def _content(host: str, token: str) -> str:
    return f"{host} {token}\n"
