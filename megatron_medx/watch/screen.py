"""`medx watch`: the loop around runs, keys and the screen, and the same screen on paper."""

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from megatron_medx.errors import ConfigError
from megatron_medx.terminal import say
from megatron_medx.watch import terminal_screen
from megatron_medx.watch.definitions import definition_pages
from megatron_medx.watch.layout import CURVES, View, screen_lines
from megatron_medx.watch.terminal_screen import TerminalScreen, taken_terminal
from megatron_medx.watch.watched_run import WatchedRun

LEAST_EVERY_S = 0.1
"""Least time between two looks; more often would keep a disk and a core busy for nobody's eyes."""

MOST_RUNS = 8
"""Runs that a screen can tell apart."""

ONCE_WIDTH, LEAST_WIDTH = 100, 20
"""Characters of a line on paper where neither COLUMNS nor the terminal says it, and the least."""


def watch(folders: Sequence[Path], once: bool, every_s: float) -> int:
    """Show runs until `q`; once, where that is asked for or no terminal is there to draw on.

    Args:
        folders: of runs.
        once: print the screen as plain text and end.
        every_s: seconds between two looks at the files.

    Returns:
        0.

    Raises:
        ConfigError: a folder is no run, or cannot be read; too many runs, too little time between looks.
        SystemExit: a signal ended it.
    """
    if not every_s >= LEAST_EVERY_S:  # nan is refused as well
        raise ConfigError(f"--every {every_s:g}", f"at least {LEAST_EVERY_S:g} s", "leave it out: the default is 2")
    if len(folders) > MOST_RUNS:
        raise ConfigError(f"{len(folders)} runs", f"at most {MOST_RUNS} on a screen", "leave some of them out")
    runs = [WatchedRun(folder) for folder in folders]
    for run in runs:
        run.look(time.time())
    if once or not (sys.stdin.isatty() and sys.stdout.isatty()) or Console().is_dumb_terminal:
        for line in plain_lines(runs, shutil.get_terminal_size((ONCE_WIDTH, 0)).columns):
            say(line)
        return 0
    with taken_terminal() as screen:
        _show(runs, screen, every_s)
    return 0


def plain_lines(runs: list[WatchedRun], width: int) -> list[str]:
    """The screen with all its numbers, as text without control characters.

    A character that the encoding of stdout lacks becomes a question mark.
    """
    encoding = sys.stdout.encoding or "utf-8"
    lines = screen_lines(runs, View(), max(LEAST_WIDTH, width), None)
    return [line.plain.rstrip().encode(encoding, "replace").decode(encoding) for line in lines]


def _show(runs: list[WatchedRun], screen: TerminalScreen, every_s: float) -> None:
    """Look, draw, wait for a key, until one of them ends it."""
    view, page, look_s = View(), None, time.monotonic() + every_s
    while True:
        if time.monotonic() >= look_s:
            _look(runs)
            look_s = time.monotonic() + every_s
        screen.draw(_lines(runs, view, page, *screen.size))
        match screen.key(max(0.0, look_s - time.monotonic())):
            case "q" | "Q" | terminal_screen.LEAVES:
                return
            case "d" | "?":
                page = 0 if page is None else None
            case " " if page is not None:
                page += 1
            case "c" if page is None:
                view.curve = (view.curve + 1) % len(CURVES)
            case "z" if page is None:
                view.is_zoomed = not view.is_zoomed


def _look(runs: list[WatchedRun]) -> None:
    """A run that cannot be read now says so in its head, and is looked at again."""
    for run in runs:
        with contextlib.suppress(ConfigError):
            run.look(time.time())


def _lines(runs: list[WatchedRun], view: View, page: int | None, width: int, height: int) -> list[Text]:
    if page is None:
        return screen_lines(runs, view, width, height)
    pages = definition_pages(width, height)
    return pages[page % len(pages)]
