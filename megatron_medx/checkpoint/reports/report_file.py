"""Reports that a command leaves in a file of the user's choice: refused before the work, whole once there."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_medx.errors import CheckpointError


def check_report_file(path: Path) -> None:
    """Stop before long work when its report could not be written.

    Raises:
        CheckpointError: the path is a folder, or its folder is absent or may not be written.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise CheckpointError(
            f"{path} is a folder, or lies in none that can be written",
            "a file name in an existing folder",
            "name another file for the report",
        )


def write_report_file(path: Path, text: str) -> None:
    """Write a report in one step, so that a reader never sees half of it; a file of the name is replaced."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    os.replace(partial, path)


@contextmanager
def json_report(path: Path | None) -> Iterator[Callable[[dict], None]]:
    """A function that writes a report as JSON, if a file is wanted; whether it can be written is known before.

    Raises:
        CheckpointError: it cannot.
    """
    if path is None:
        yield lambda report: None
        return
    check_report_file(path)
    yield lambda report: write_report_file(path, json.dumps(report, indent=2) + "\n")
