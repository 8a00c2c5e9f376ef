"""Files with a line of JSON a step, which a run that goes on continues: steps that it repeats are dropped."""

import json
from pathlib import Path
from typing import TextIO


class StepLines:
    """Adds lines to one file; nothing is opened before the first.

    Args:
        path: of the file; what a former launch wrote there is kept, but for the steps that this one repeats.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file: TextIO | None = None

    def write(self, line: dict) -> None:
        """Add a line, whole on the disk when this returns.

        Args:
            line: plain values, `step` among them, ascending.
        """
        if self._file is None:
            kept = [former for former in read_metrics(self._path) if former["step"] < line["step"]]
            self._file = open(self._path, "w")
            self._file.writelines(json.dumps(former) + "\n" for former in kept)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """The lines of such a file; a last line that was cut off while being written is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
