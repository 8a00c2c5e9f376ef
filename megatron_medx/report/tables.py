"""Tables of the page, and numbers as they stand in them."""

import math
from dataclasses import dataclass, field

from megatron_medx.report.definitions import Definition, definition

NOTHING = "-"
"""What stands where there is no number."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: a plain title, or a quantity with its unit and definition."""

    label: str
    what: Definition | None = None
    is_number: bool = False

    @property
    def unit(self) -> str:
        """What stands below the label: nothing where the label says it already."""
        return self.what.unit if self.what and self.what.unit not in self.label.split() else ""


@dataclass(slots=True)
class Table:
    """Rows of texts below columns."""

    columns: list[Column]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""
    """What a reader has to know of it; empty where it speaks for itself."""


def text_column(label: str) -> Column:
    """A column of words."""
    return Column(label)


def number_column(name: str, label: str = "") -> Column:
    """A column of the quantity `table.key`.

    Args:
        name: for instance `step.loss`.
        label: in place of the quantity's own.
    """
    what = definition(name)
    return Column(label or what.label, what, is_number=True)


def number(value: object, unit: str = "") -> str:
    """A number with four significant digits, whole ones with all; a share becomes per cent where `unit` is %."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return NOTHING
    if unit == "%":
        return f"{100 * value:.2f}"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
