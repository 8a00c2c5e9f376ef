"""A tracker in a thread of its own: a step hands its numbers over and goes on; a tracker that fails ends alone."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path

from megatron_medx.config.run import RunConfig
from megatron_medx.training.trackers.tracker import Tracker

MOST_WAITING = 10_000
"""Things that may wait for a tracker: some hours of steps while a server is away, some 30 MB."""

FINISH_PATIENCE_S = 20.0
"""Longest wait at a run's end for a tracker to send what is left: a server that is away must not hold the job."""


class Beside:
    """Tells one tracker what it is given, in order, in a thread that starts with the first thing.

    Args:
        tracker: used by the thread alone.
        config: the run.
        folder: run folder.
        failed: told once of what went wrong, from the thread or from `finish`; the tracker is told nothing more.
    """

    def __init__(self, tracker: Tracker, config: RunConfig, folder: Path, failed: Callable[[Tracker, str], None]):
        self._tracker, self._config, self._folder, self._failed = tracker, config, folder, failed
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._has_ended = threading.Event()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Hand numbers over."""
        self._hand_over(step, lambda: self._tracker.log(step, values))

    def tell(self, step: int, name: str, text: str) -> None:
        """Hand a text over."""
        self._hand_over(step, lambda: self._tracker.tell(step, name, text))

    def finish(self) -> None:
        """Wait until all is told, FINISH_PATIENCE_S at most."""
        if self._thread is None or self._has_ended.is_set():
            return
        self._put(None)
        self._thread.join(FINISH_PATIENCE_S)
        if self._thread.is_alive():
            self._give_up(f"it has not taken all within {FINISH_PATIENCE_S:g} s of the end")

    def _hand_over(self, step: int, task: Callable[[], None]) -> None:
        if self._has_ended.is_set():
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, args=(step,), name=self._tracker.name, daemon=True)
            self._thread.start()
        self._put(task)

    def _put(self, task: Callable[[], None] | None) -> None:
        try:
            self._waiting.put_nowait(task)
        except queue.Full:
            self._give_up(f"{MOST_WAITING:,} things wait for it")

    def _work(self, first_step: int) -> None:
        """In the thread: start the tracker, tell it what comes, end it; whatever it raises is told, never raised."""
        try:
            self._tracker.start(self._config, self._folder, first_step)
            while not self._has_ended.is_set() and (task := self._waiting.get()) is not None:
                task()
            self._tracker.finish()
        except Exception as error:
            self._give_up(str(error).strip() or type(error).__name__)

    def _give_up(self, why: str) -> None:
        if not self._has_ended.is_set():
            self._has_ended.set()
            self._failed(self._tracker, why)
