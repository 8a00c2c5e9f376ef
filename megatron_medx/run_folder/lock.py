"""`lock.json`: whose the run folder is, so that exactly one job, or one `medx train`, writes to it.

A holder is a Slurm job, by its id, which it keeps when it is requeued, or a process of one machine: host, boot id,
process id and start time, so that neither a reboot nor a reused id looks like the holder. A lock whose holder is gone
is taken over, so nobody has to remove one after a kill. Who cannot be asked about (a process of another host, a job
without Slurm's commands) counts as alive.

The file appears by a hard link, which also NFS makes for exactly one of several writers. Taking over: whoever links
`lock.json.after-<id of the dead holder's lock>` may replace that lock, after having looked that it is still the same.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path

from megatron_medx.errors import ConfigError
from megatron_medx.run_folder import events
from megatron_medx.run_folder.names import LOCK_FILE

LIVE_JOBS = "MEDX_LIVE_JOBS"
"""Environment variable: ids of all jobs that Slurm knows as waiting or running. slurm/job.bash sets it for containers,
in which there is no `scontrol`."""

OVER = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)
"""States of a job whose tasks are gone; in all others it runs, ends or waits to go on."""

ENDING_PATIENCE_S, ASK_AGAIN_S, ANSWER_S = 90.0, 1.0, 60
"""Seconds that a job which is being ended gets to be gone (Slurm's KillWait is 30), until it is asked about again, and
that Slurm gets to answer."""


def acquire(folder: Path) -> None:
    """Make the folder ours, if it is not yet; `release` gives it back, and so does our death.

    Args:
        folder: of a run; made where it is missing. Ours is the Slurm job's in whose environment this process runs
            (all its tasks hold the same lock), else this process's.

    Raises:
        ConfigError: another holder lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _acquire(folder / LOCK_FILE, folder)


def release(folder: Path) -> None:
    """Remove the lock if it is ours."""
    if is_ours(folder):
        (folder / LOCK_FILE).unlink(missing_ok=True)


def is_ours(folder: Path) -> bool:
    """Whether this process, or its Slurm job, holds the folder."""
    lock = _read(folder / LOCK_FILE)
    return lock is not None and _identity(lock) == _identity(_me())


def live_holder(folder: Path) -> str | None:
    """In words, who else holds the folder and lives; None where nobody does."""
    lock = _read(folder / LOCK_FILE)
    if lock is None or _identity(lock) == _identity(_me()) or _why_gone(lock):
        return None
    return _in_words(lock)


def _acquire(path: Path, folder: Path) -> None:
    mine = _me()
    deadline = time.monotonic() + ENDING_PATIENCE_S
    while not _link(mine, path):
        lock = _read(path)
        if lock is None:  # released a moment ago
            continue
        if _identity(lock) == _identity(mine):
            return
        why, is_ending = _look_at(lock)
        if why:
            if _replace(lock, mine, path, folder):
                events.append(folder, "lock_taken_over", holder=_in_words(lock), why=why)
                return
        elif is_ending and time.monotonic() < deadline:
            time.sleep(ASK_AGAIN_S)
        else:
            raise ConfigError(
                f"{_in_words(lock)} holds {folder} since {lock['since']}",
                "one writer for a run folder",
                f"wait for it, or end it ({_how_to_end(lock)}), or choose another run.folder; "
                f"if you know that it is gone, rm {path}",
            )


def _replace(lock: dict, mine: dict, path: Path, folder: Path) -> bool:
    """Put our lock in the place of a dead one; False where another process did so first."""
    turn = path.with_name(f"{path.name}.after-{lock['id']}")
    if not _link(mine, turn):
        other = _read(turn)
        if other is None or not _why_gone(other):
            time.sleep(0.05)  # the other is about to replace it
            return False
        _acquire(turn, folder)  # it died between two lines of this function
    try:
        now = _read(path)
        if now is None or now["id"] != lock["id"]:
            return False
        _write_beside(mine, path).replace(path)
        return True
    finally:
        turn.unlink(missing_ok=True)


def _link(lock: dict, path: Path) -> bool:
    """Whether the lock is now at `path`, where none was."""
    written = _write_beside(lock, path)
    try:
        os.link(written, path)
    except FileExistsError:
        return False
    finally:
        written.unlink()
    return True


def _write_beside(lock: dict, path: Path) -> Path:
    written = path.with_name(f"{path.name}.{lock['id']}.partial")
    written.write_text(json.dumps(lock) + "\n")
    return written


def _read(path: Path) -> dict | None:
    """What the file says; None where there is none. A file that says nothing is of a holder that cannot be asked."""
    try:
        lock = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        lock = None
    return lock if isinstance(lock, dict) and {"id", "since"} <= set(lock) else {"id": "unknown", "since": "unknown"}


def _me() -> dict:
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        holder = {"job": job, "cluster": os.environ.get("SLURM_CLUSTER_NAME", "")}
    else:
        pid = os.getpid()
        holder = {"host": socket.gethostname(), "boot": _boot(), "pid": pid, "started": _started(pid)}
    return {"id": uuid.uuid4().hex, "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **holder}


def _identity(lock: dict) -> dict:
    return {key: value for key, value in lock.items() if key not in ("id", "since")}


def _in_words(lock: dict) -> str:
    if "job" in lock:
        return f"Slurm job {lock['job']}" + (f" of cluster {lock['cluster']}" if lock["cluster"] else "")
    return f"process {lock['pid']} on {lock['host']}" if "pid" in lock else "somebody"


def _how_to_end(lock: dict) -> str:
    return f"scancel {lock['job']}" if "job" in lock else f"kill {lock['pid']} there" if "pid" in lock else "who?"


def _why_gone(lock: dict) -> str | None:
    """Why the holder no longer lives; None where it does, or where nobody here can know."""
    return _look_at(lock)[0]


def _look_at(lock: dict) -> tuple[str | None, bool]:
    """Why the holder is gone (see `_why_gone`), and whether it is a job whose end has begun."""
    if "job" in lock:
        return _look_at_job(lock)
    if lock.get("host") != socket.gethostname():
        return None, False
    if lock["boot"] != _boot():
        return "its machine was started anew", False
    lives = lock["started"] and _started(lock["pid"]) == lock["started"]
    return None if lives else "the process is gone", False


def _look_at_job(lock: dict) -> tuple[str | None, bool]:
    if lock["cluster"] != os.environ.get("SLURM_CLUSTER_NAME", lock["cluster"]):
        return None, False
    if LIVE_JOBS in os.environ:
        return None if lock["job"] in os.environ[LIVE_JOBS].split() else "Slurm has no such job any more", False
    state = _job_state(lock["job"])
    if state == "":
        return "Slurm has no such job any more", False
    return f"the job is {state}" if state in OVER else None, state == "COMPLETING"


def _job_state(job: str) -> str | None:
    """As `scontrol` says; empty where Slurm has forgotten the job, None where Slurm cannot be asked."""
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        return None
    command = [scontrol, "--oneliner", "show", "job", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return "" if "Invalid job id" in done.stderr else None
    state = re.search(r"\bJobState=(\w+)", done.stdout)
    return state and state[1]


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _started(pid: int) -> str:
    """When a process began, in clock ticks since the machine did; empty where there is none, or only its zombie."""
    try:
        # the name of the program, in brackets, may hold spaces and brackets
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else numbers[18]
