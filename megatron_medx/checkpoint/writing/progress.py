"""A progress line for long conversions: bytes, bytes per second, time left. Silent where nobody watches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class Advance(Protocol):
    """Called with the number of bytes that are being written now."""

    def __call__(self, num_bytes: int, /) -> None: ...


@contextmanager
def byte_progress(label: str, total_bytes: int, done_bytes: int = 0) -> Iterator[Advance]:
    """Show progress on stderr while the block runs, if stderr is a terminal.

    Args:
        label: what the line begins with.
        total_bytes: of the whole output.
        done_bytes: what an earlier attempt finished; speed and time left count from here.
    """
    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total_bytes, completed=done_bytes)
        yield lambda num_bytes: progress.advance(task, num_bytes)
