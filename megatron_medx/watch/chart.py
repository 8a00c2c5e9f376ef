"""Curves in text: dots of braille, 2 x 4 to a character, with marks on them where there are several.

Comes in: steps and values of any number; long curves are thinned so that spikes and gaps stay. Goes out: lines of
`rich.text.Text`, as wide and as many as asked for. A line is the same curve without colors.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from megatron_medx.status.thinning import thin

DOTS_ACROSS, DOTS_DOWN = 2, 4
"""Of a character."""

_BRAILLE = 0x2800
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""By row from the top and column: the dots of U+2800."""

POINTS_A_COLUMN = 6
"""Points of a curve that are kept for each character of width: more change no dot."""

MARK_EVERY = 14
"""Characters between two marks on a curve."""

LABEL_WIDTH = 8
"""Characters of the values at the left edge, the edge included."""

MIN_WIDTH, MIN_HEIGHT = 24, 5
"""Below these there is nothing to be seen in a chart; title and steps included."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What a chart shows of one run, or of one validation set of it."""

    label: str
    mark: str
    """One or two characters that stand on the curve where there are several."""
    style: str
    """Of rich."""
    steps: Sequence[int]
    values: Sequence[float]
    """As many; nan is a gap."""


def chart(title: str, curves: Sequence[Curve], width: int, height: int) -> list[Text]:
    """Lines of a chart: title and legend, the curves, the steps below them.

    Curves without a single value are only named.

    Args:
        title: with the unit.
        curves: of none it says so.
        width: characters, at least MIN_WIDTH.
        height: lines, at least MIN_HEIGHT.
    """
    head = _head(title, curves, width, height - MIN_HEIGHT + 1)
    columns, rows = width - LABEL_WIDTH, height - len(head) - 1
    shown = [curve for curve in curves if any(math.isfinite(value) for value in curve.values)]
    if not shown:
        return [*head, Text("no value yet", style="dim"), *[Text()] * rows]
    canvas = _Canvas(columns, rows, _extent(shown))
    for number, curve in enumerate(shown):
        canvas.draw(curve, curve.mark if len(curves) > 1 else "", number * MARK_EVERY // len(shown))
    first, last = f"{canvas.first:,}", f"{canvas.last:,}"
    below = Text(f"{'step':>{LABEL_WIDTH - 1}} {first}{last:>{max(0, columns - len(first))}}", style="dim")
    return [*head, *canvas.lines(), below]


def _head(title: str, curves: Sequence[Curve], width: int, most_lines: int) -> list[Text]:
    """The title, and of several curves their marks and names, behind it and below as they fit."""
    lines = [Text(title, style="bold")]
    for curve in curves if len(curves) > 1 else ():
        entry = f"  {curve.mark} {curve.label}"
        if cell_len(lines[-1].plain + entry) > width and len(lines) < most_lines:
            lines.append(Text(style="bold"))
        lines[-1].append(entry, style=f"not bold {curve.style}")
    return lines


def _extent(curves: Sequence[Curve]) -> tuple[int, int, float, float]:
    """First and last step, smallest and largest value of all; a constant gets some room around it."""
    values = [value for curve in curves for value in curve.values if math.isfinite(value)]
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    return min(curve.steps[0] for curve in curves), max(curve.steps[-1] for curve in curves), low, high


class _Canvas:
    """Dots by character, and who drew there last."""

    def __init__(self, columns: int, rows: int, extent: tuple[int, int, float, float]):
        self.first, self.last, self.low, self.high = extent
        self._columns, self._rows = columns, rows
        self._dots = [[0] * columns for _ in range(rows)]
        self._styles = [[""] * columns for _ in range(rows)]
        self._letters: dict[tuple[int, int], str] = {}

    def draw(self, curve: Curve, mark: str, mark_from: int) -> None:
        """Lines from value to value, none across a gap; a value alone is a dot.

        Args:
            curve: of any length.
            mark: at most two letters.
            mark_from: column of its first mark.
        """
        before, columns = None, {}
        for step, value in zip(*thin(curve.steps, curve.values, POINTS_A_COLUMN * self._columns), strict=True):
            if not math.isfinite(value):
                before = None
                continue
            dot = self._dot(step, value)
            for across, down in _line(before or dot, dot):
                column, row = across // DOTS_ACROSS, down // DOTS_DOWN
                self._dots[row][column] |= _BITS[down % DOTS_DOWN][across % DOTS_ACROSS]
                self._styles[row][column] = curve.style
                columns[column] = row
            before = dot
        if mark and columns:
            marked = {column for column in columns if column % MARK_EVERY == mark_from} or {max(columns)}
            self._letters |= {
                (columns[column], column + place): letter for column in marked for place, letter in enumerate(mark)
            }

    def lines(self) -> Iterator[Text]:
        """With the values at the left edge: of the top, the middle and the bottom."""
        labels = {0: self.high, self._rows - 1: self.low}
        if self._rows >= 5:
            middle = self._rows // 2
            labels[middle] = self.high - (self.high - self.low) * (middle + 0.5) / self._rows
        for row in range(self._rows):
            label = f"{labels[row]:.4g}" if row in labels else ""
            line = Text(f"{label:>{LABEL_WIDTH - 1}}" + ("┤" if label else "│"), style="dim")
            # cells of one style are one piece: each piece costs some ten characters on the wire
            for style, cells in itertools.groupby(range(self._columns), self._styles[row].__getitem__):
                line.append("".join(self._character(row, column) for column in cells), style=f"not dim {style}")
            yield line

    def _character(self, row: int, column: int) -> str:
        dots = self._dots[row][column]
        return self._letters.get((row, column)) or (chr(_BRAILLE + dots) if dots else " ")

    def _dot(self, step: int, value: float) -> tuple[int, int]:
        """Where a value is, in dots from the left and from the top."""
        across = (step - self.first) / max(1, self.last - self.first) * (self._columns * DOTS_ACROSS - 1)
        down = (self.high - value) / (self.high - self.low) * (self._rows * DOTS_DOWN - 1)
        return round(across), round(down)


def _line(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Dots on the straight line between two, both included."""
    (x0, y0), (x1, y1) = start, end
    num = max(abs(x1 - x0), abs(y1 - y0))
    for part in range(num + 1):
        share = part / num if num else 0.0
        yield round(x0 + (x1 - x0) * share), round(y0 + (y1 - y0) * share)
