"""The terminal while `medx watch` has it: the alternate screen, single keys, lines that are written when they change.

A screen costs a slow link only what differs from the one before. Whatever ends the program, `q`, an exception, SIGINT,
SIGTERM, SIGHUP, the terminal is left as it was found. SIGTSTP is ignored meanwhile: a shell below an alternate screen
would be of no use.
"""

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType

from rich.console import Console
from rich.text import Text

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

EMPTY_LINE = "\x1b[{row};1H\x1b[2K"
"""Before a line is written: behind one that fills its row the cursor still stands on the last character."""

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[2J", "\x1b[?25h\x1b[?1049l"
"""The alternate screen without a cursor, emptied; and back."""

FALLBACK_SIZE = os.terminal_size((80, 24))
"""Of a terminal that says it has none."""

LEAVES = ""
"""What `key` returns when nobody is there any more."""


class TerminalScreen:
    """Keys come in, lines go out; made by `taken_terminal`."""

    def __init__(self, wake: int):
        self._wake = wake
        self._written: list[str] = []
        self._size: os.terminal_size | None = None

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines now."""
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(sys.stdout.fileno())
            return size if size.columns and size.lines else FALLBACK_SIZE
        return FALLBACK_SIZE

    def draw(self, lines: list[Text]) -> int:
        """Show lines from the top, at most as many as there are; returns how many bytes that took."""
        size = self.size
        console = Console(width=size.columns, force_terminal=True, highlight=False)
        texts = []
        for line in lines[: size.lines]:
            with console.capture() as captured:
                console.print(line, end="", no_wrap=True, overflow="ellipsis", crop=True)
            texts.append(captured.get())
        texts += [""] * (size.lines - len(texts))
        before = self._written if size == self._size else [None] * len(texts)
        changed = [number for number, text in enumerate(texts) if text != before[number]]
        data = "".join(EMPTY_LINE.format(row=row + 1) + texts[row] for row in changed).encode()
        _write(data)
        self._written, self._size = texts, size
        return len(data)

    def key(self, timeout_s: float) -> str | None:
        """The next key, LEAVES where the terminal is gone, None after that time or when its size changed."""
        ready, _, _ = select.select([sys.stdin.fileno(), self._wake], [], [], timeout_s)
        if self._wake in ready:
            os.read(self._wake, 1024)
        if sys.stdin.fileno() not in ready:
            return None
        try:
            return os.read(sys.stdin.fileno(), 1).decode(errors="replace")
        except OSError:  # of a terminal that hung up
            return LEAVES


@contextlib.contextmanager
def taken_terminal() -> Iterator[TerminalScreen]:
    """Take the terminal of stdin and stdout, and give it back as it was.

    Raises:
        SystemExit: a signal of ENDING came; with the code that a shell gives for it.
    """
    stdin = sys.stdin.fileno()
    found = termios.tcgetattr(stdin)
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    handlers = {number: signal.signal(number, _end) for number in ENDING}
    # a handler of Python's own makes the signal's number appear in the pipe, which wakes `key`
    handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda number, frame: None)
    handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    wakeup = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    try:
        tty.setcbreak(stdin)
        _write(ENTER.encode())
        yield TerminalScreen(readable)
    finally:
        for number in ENDING:  # a second one must not come between what follows
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
            _write(LEAVE.encode())
            termios.tcsetattr(stdin, termios.TCSADRAIN, found)
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(readable)
        os.close(writable)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _write(data: bytes) -> None:
    """All of it, past Python's buffer, in which nothing must be left when the screen is given back."""
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
