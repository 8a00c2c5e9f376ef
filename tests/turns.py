"""Turns on what tests share: cores of this machine, nodes of an emulated cluster."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class Turns:
    """So many places, given in the order of asking: small requests do not pass a large one again and again.

    Args:
        places: in all; nobody asks for more at once.
    """

    def __init__(self, places: int):
        self._free, self._queue, self._changed = places, deque(), threading.Condition()

    @contextlib.contextmanager
    def take(self, wanted: int) -> Iterator[None]:
        """Wait for one's turn and for so many places; they are free again afterwards."""
        turn = object()
        with self._changed:
            self._queue.append(turn)
            self._changed.wait_for(lambda: self._queue[0] is turn and self._free >= wanted)
            self._queue.popleft()
            self._free -= wanted
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()
