"""A step that never ends: found by every rank for itself, with the stacks of all, and the run is started again.

One rank that stands still, on a dead link or in a driver, lets all others wait in a collective. A thread of each rank
looks at the time since its last step ended. When that exceeds `survival.hang_factor` medians, and `hang_min_s`, the
stacks of all its threads go to `logs/stacks_rank_<n>.txt`, the first rank writes the event `hang`, and each leaves with
code AGAIN. Saving and validating, the way to the first step, and each moment of the way out, get `start_patience_s`.

A rank whose interpreter itself stands still (a call into C that keeps its lock) cannot run that thread. For it a timer
of faulthandler, which needs no interpreter, dumps the stacks to the rank's log and ends the process, somewhat later.

A step pays for two assignments and an append; the thread wakes up once a second, or faster for small limits.
"""

import contextlib
import datetime
import faulthandler
import functools
import os
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_medx.config.run import SurvivalSection
from megatron_medx.run_folder import events
from megatron_medx.run_folder.names import LOGS, stacks_file

HANG_MARK = "hang"
"""In the folder of logs: a rank of this launch has told of the hang."""

NUM_STEPS = 100
"""Last steps whose median counts."""

DUMP_PATIENCE_S = 5.0
"""Longest time that a rank which has dumped its stacks waits for the others to dump theirs."""


class Watchdog:
    """Ends this rank when a step takes too long.

    Args:
        survival: the run's; `hang_factor` 0 never looks.
        folder: of the run.
        rank: this one.
        step: steps that the run has done.
        say: takes a line for the screen.
    """

    def __init__(self, survival: SurvivalSection, folder: Path, rank: int, step: int, say: Callable[[str], None]):
        self._survival, self._folder, self._rank, self._step, self._say = survival, folder, rank, step, say
        self._since_s = time.monotonic()
        self._is_patient = True
        self._durations_s: deque[float] = deque(maxlen=NUM_STEPS)
        self._stopped = threading.Event()
        self._dump_patience_s = min(DUMP_PATIENCE_S, survival.hang_min_s)
        self._interval_s = min(1.0, survival.hang_min_s / 5, survival.start_patience_s / 5)

    def start(self) -> None:
        """Begin to look, from now on with the patience of a start."""
        if self._survival.hang_factor:
            threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def step_done(self, step: int, duration_s: float) -> None:
        """A step has ended, and the next one begins.

        Args:
            step: its number, from 1.
            duration_s: of the step alone.
        """
        self._durations_s.append(duration_s)
        self._step, self._since_s, self._is_patient = step, time.monotonic(), False

    def still_ending(self) -> None:
        """The last step is behind us, and what follows it goes on: it has the patience of a start from now on again."""
        self._since_s, self._is_patient = time.monotonic(), True

    def patiently(self, function: Callable) -> Callable:
        """The same function, whose time is not a step's."""

        @functools.wraps(function)
        def patient(*args: Any, **kwargs: Any) -> Any:
            with self._patience():
                return function(*args, **kwargs)

        return patient

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        before, self._is_patient, self._since_s = self._is_patient, True, time.monotonic()
        try:
            yield
        finally:
            self._is_patient, self._since_s = before, time.monotonic()

    def limit_s(self) -> float:
        """Seconds that what is under way may take."""
        if self._is_patient or not self._durations_s:
            return self._survival.start_patience_s
        return max(self._survival.hang_min_s, self._survival.hang_factor * self.median_s())

    def median_s(self) -> float:
        """Median of the last steps' durations; 0 before the first."""
        return statistics.median(list(self._durations_s) or [0.0])

    def _look(self) -> None:
        looked_s = time.monotonic()
        while True:
            self._arm_timer()
            if self._stopped.wait(self._interval_s):
                faulthandler.cancel_dump_traceback_later()
                return
            now_s = time.monotonic()
            if (asleep_s := now_s - looked_s - self._interval_s) > 10 * self._interval_s:
                self._since_s += asleep_s  # this very process stood still, with its job, as for a suspended one
            looked_s = now_s
            waited_s, limit_s = now_s - self._since_s, self.limit_s()
            if waited_s > limit_s and not self._stopped.is_set():
                self._end(waited_s, limit_s)

    def _arm_timer(self) -> None:
        """Put off the timer that needs no interpreter; it runs out only when this thread cannot come back here."""
        later_s = 2 * self.limit_s() + self._dump_patience_s
        faulthandler.dump_traceback_later(later_s, exit=True, file=sys.__stderr__)

    def _end(self, waited_s: float, limit_s: float) -> None:
        found = (
            f"nothing has ended on rank {self._rank} ({socket.gethostname()}) for {waited_s:.1f} s after step "
            f"{self._step}; the limit was {limit_s:.1f} s, the median step takes {self.median_s():.2f} s"
        )
        path = self._folder / LOGS / stacks_file(self._rank)
        try:
            with open(path, "a") as file:
                file.write(f"=== {datetime.datetime.now().isoformat(timespec='seconds')} {found}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")
            if self._is_first():
                facts = {"waited_s": round(waited_s, 1), "median_s": round(self.median_s(), 3)}
                where = {"rank": self._rank, "host": socket.gethostname()}
                events.append(self._folder, "hang", step=self._step + 1, **facts, **where)
                self._say(f"hung: {found}; where its threads stood: {path}, and so for each rank")
            time.sleep(self._dump_patience_s)
        finally:  # a full or lost disk must not keep a hung rank
            os._exit(events.AGAIN)

    def _is_first(self) -> bool:
        """Whether no other rank of this launch has told of it."""
        with contextlib.suppress(FileExistsError), open(self._folder / LOGS / HANG_MARK, "x"):
            return True
        return False
