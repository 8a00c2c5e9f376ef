"""What lets a conversion read and write the disk at the same time: a tensor read ahead, and early write-back."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

WRITEBACK_BYTES = 64_000_000
"""What is written between two requests to send it to the disk."""


def read_ahead[T](items: Iterator[T]) -> Iterator[T]:
    """Yield every item of an iterator, while a thread already makes the next one.

    So one item more is in memory than without. An exception of the iterator is raised in its item's place.
    """
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
        coming = reader.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, items, end)
            yield item


class EarlyWriteback:
    """Sends a growing file to the disk while it is being written.

    Without it the kernel gathers gigabytes before it starts, and the `fsync` at the end waits for all of them.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._sent = 0

    def advance(self) -> None:
        """Request the write-back of what is new, once that is WRITEBACK_BYTES or more; does not wait for the disk."""
        end = self._file.tell()
        if end - self._sent >= WRITEBACK_BYTES:
            self._file.flush()
            # "Do not need": Linux starts writing the dirty pages, and frees those that have been written.
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._sent = end
