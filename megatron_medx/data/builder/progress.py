"""A progress line for long builds: samples, rejects, time left. Silent where nobody watches."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_medx.data.builder.plan import PART_FILE, part_folder, read_tasks

LOOK_EVERY_S = 0.5
"""Time between two looks at which tasks are done: whoever does them, their files say so."""


@contextmanager
def build_progress(work: Path) -> Iterator[None]:
    """Show on stderr, if it is a terminal, how far the tasks are while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    tasks = read_tasks(work)
    columns = (
        TextColumn("building"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("samples, {task.fields[rejected]:,} rejected,"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    done = threading.Event()
    with Progress(*columns, console=console, transient=True) as progress:
        line = progress.add_task("", total=sum(chunk["count"] for task in tasks for chunk in task), rejected=0)
        watcher = threading.Thread(target=_watch, args=(work, len(tasks), progress, line, done), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _watch(work: Path, num_tasks: int, progress: Progress, line: int, done: threading.Event) -> None:
    waiting, finished, rejected = set(range(num_tasks)), 0, 0
    while waiting:
        is_last_look = done.is_set()
        for number in sorted(waiting):
            path = part_folder(work, number) / PART_FILE
            if path.is_file():
                part = json.loads(path.read_text(encoding="utf-8"))
                finished += part["num_items"]
                rejected += sum(len(split["rejects"]) for split in part["splits"].values())
                waiting.remove(number)
        progress.update(line, completed=finished, rejected=rejected)
        if is_last_look:
            return
        done.wait(LOOK_EVERY_S)
