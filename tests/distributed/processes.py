"""Processes of a launched run: found, waited for, ended."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

import psutil


def end_session(process: subprocess.Popen) -> None:
    """Kill a launcher that we started, with all its ranks and their helpers."""
    for pid in (process.pid, *session_pids(process)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def session_pids(process: subprocess.Popen) -> tuple[int, ...]:
    """Processes, but for the dead, that a launcher started, also through others."""
    found = []
    for other in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getsid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other.pid)
    return tuple(found)


def lasting_pids(process: subprocess.Popen, patience_s: float = 5.0) -> tuple[int, ...]:
    """What is left of a session when those that are ending have had their time."""
    deadline = time.monotonic() + patience_s
    while (pids := session_pids(process)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return pids


def worker_pids(launcher: subprocess.Popen) -> list[int]:
    """Process ids of the ranks, by rank."""
    ranks = {}
    for child in psutil.Process(launcher.pid).children():
        with contextlib.suppress(psutil.Error):
            if "megatron_medx.training.worker" in child.cmdline():
                ranks[int(child.environ()["RANK"])] = child.pid
    return [pid for _, pid in sorted(ranks.items())]


def wait_until(condition: Callable[[], bool], launcher: subprocess.Popen, what: str, interval_s: float = 0.02) -> None:
    """Poll until `condition` holds; fails when the launcher ends before."""
    while not condition():
        assert launcher.poll() is None, f"the run ended before {what}"
        time.sleep(interval_s)
