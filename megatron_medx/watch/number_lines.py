"""Numbers as lines: a single run in columns read downwards, several runs side by side."""

from rich.cells import cell_len
from rich.text import Text

from megatron_medx.watch.numbers import Row
from megatron_medx.watch.styles import STYLES, run_letter

MOST_COLUMNS, GAP = 3, 3
"""Columns of numbers of a single run, and characters between them."""


def number_lines(table: list[Row], num_runs: int, width: int, most_lines: int | None = None) -> list[Text]:
    """As many of the first rows as fit.

    Args:
        table: the most important first.
        num_runs: a row has as many texts.
        width: characters.
        most_lines: None for all.
    """
    if not table or most_lines == 0:
        return []
    if num_runs > 1:
        return _comparison(table, num_runs, width)[:most_lines]
    for num_columns in range(MOST_COLUMNS, 0, -1):
        num_lines = -(-len(table) // num_columns)
        num_lines = num_lines if most_lines is None else min(most_lines, num_lines)
        starts = range(0, min(len(table), num_columns * num_lines), num_lines)
        columns = [_column(table[start : start + num_lines]) for start in starts]
        widths = [max(cell_len(cell.plain) for cell in column) for column in columns]
        if sum(widths) + GAP * (len(widths) - 1) <= width:
            break
    padded = [column + [Text()] * (num_lines - len(column)) for column in columns]
    return [side_by_side(list(cells), widths) for cells in zip(*padded, strict=True)]


def side_by_side(texts: list[Text], widths: list[int]) -> Text:
    """Texts in one line, each filled up to its width; the last as it is."""
    line = Text()
    for number, (text, width) in enumerate(zip(texts, widths, strict=True)):
        line.append_text(text)
        if number < len(texts) - 1:
            line.append(" " * (width - cell_len(text.plain) + GAP))
    return line


def _labels(rows: list[Row], with_units: bool) -> list[Text]:
    """Names, as wide as each other; one that begins like the name above it is told by its end.

    Example: `step time, median`, `step time, 90 %` become `step time, median`, `  90 %`.
    """
    labels, above = [], None
    for row in rows:
        begin, _, end = row.label.partition(", ")
        unit = f" ({row.unit})" if with_units and row.unit else ""
        labels.append(f"  {end}" if end and begin == above else row.label + unit)
        above = begin
    width = max(map(cell_len, labels))
    return [Text(label + " " * (width - cell_len(label) + GAP - 1), style="dim") for label in labels]


def _column(rows: list[Row]) -> list[Text]:
    """Names and values below each other."""
    values = [f"{row.texts[0]} {row.unit}".rstrip() for row in rows]
    return [label.append(value, style="not dim") for label, value in zip(_labels(rows, False), values, strict=True)]


def _comparison(table: list[Row], num_runs: int, width: int) -> list[Text]:
    """A column a run; units stand beside the names, so that columns are narrow."""
    labels = _labels(table, True)
    label_width = cell_len(labels[0].plain)
    each = max(7, (width - label_width) // num_runs - GAP)
    head = Text(" " * label_width)
    for number in range(num_runs):
        style = f"bold {STYLES[number % len(STYLES)]}"
        head.append(f"{run_letter(number):>{each}}" + " " * GAP, style=style)
    lines = [head]
    for label, row in zip(labels, table, strict=True):
        shown = (text if len(text) <= each else f"{text[: each - 1]}…" for text in row.texts)
        lines.append(label.append("".join(f"{text:>{each}}" + " " * GAP for text in shown), style="not dim"))
    return lines
