"""How fast this very disk writes and reads, from a short trial: what a dry run estimates its time with."""

import os
import tempfile
import time
from pathlib import Path

BLOCK_BYTES = 8_000_000
MOST_BYTES = 64_000_000
MOST_WRITE_S, MOST_READ_S = 0.5, 0.3
"""A trial ends at the bytes or at the seconds, whichever comes first; one block is always moved."""


def write_rate(folder: Path) -> dict[str, float]:
    """Bytes and seconds of writing to a disk for good: random blocks into a file that is gone afterwards.

    Args:
        folder: on the disk; it must be writable.
    Raises:
        OSError: it cannot be written.
    """
    block = os.urandom(BLOCK_BYTES)  # a file system that compresses gains nothing
    with tempfile.TemporaryFile(dir=folder, prefix=".medx-rate-") as file:
        start_s, num_bytes = time.perf_counter(), 0
        while num_bytes < MOST_BYTES and (not num_bytes or time.perf_counter() - start_s < MOST_WRITE_S):
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            num_bytes += BLOCK_BYTES
        return {"bytes": num_bytes, "seconds": time.perf_counter() - start_s}


def read_rate(path: Path) -> dict[str, float]:
    """Bytes and seconds of reading the beginning of a file, which the page cache is asked to forget first.

    Args:
        path: of a file with at least one byte.
    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, MOST_BYTES, os.POSIX_FADV_DONTNEED)
        start_s, num_bytes = time.perf_counter(), 0
        while num_bytes < MOST_BYTES and (not num_bytes or time.perf_counter() - start_s < MOST_READ_S):
            block = file.read(BLOCK_BYTES)
            if not block:
                break
            num_bytes += len(block)
        return {"bytes": num_bytes, "seconds": time.perf_counter() - start_s}
