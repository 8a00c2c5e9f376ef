"""`sbatch ... && medx status RUN`: the folder of a run that was submitted a moment ago is not there yet."""

import time
from collections.abc import Callable
from pathlib import Path

from megatron_medx.run_folder.names import LOCK_FILE

APPEAR_S = 20.0
"""Seconds that a run folder gets to appear: on a free cluster a job starts within some of them."""

LOOK_S = 0.2


def await_run(
    folder: Path,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return when the folder holds something of a run, or after APPEAR_S; whether it is a run, others judge."""
    deadline = clock() + APPEAR_S
    if not _is_awaited(folder) or clock() >= deadline:
        return
    say(f"{folder} is not there yet; waiting up to {APPEAR_S:.0f} s for a job to start it")
    while _is_awaited(folder) and clock() < deadline:
        sleep(LOOK_S)


def _is_awaited(folder: Path) -> bool:
    """It is missing, or a job has made it and is about to take it, or has only done that."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(path.name.startswith(LOCK_FILE) for path in folder.iterdir())
