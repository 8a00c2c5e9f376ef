"""The newest validation of each set as tables: its numbers, and its loss by modality and by source."""

from megatron_medx.report.record import RunRecord
from megatron_medx.report.tables import Table, number, number_column, text_column

SET_KEYS = (
    *("loss", "perplexity", "bits_per_byte", "accuracy", "num_questions"),
    *("rows", "tokens", "trained_tokens", "duration_s"),
)
"""Columns of the table of sets, behind set and step."""


def set_table(run: RunRecord) -> Table:
    """A row for each set: its newest validation."""
    columns = [text_column("set"), number_column("validation.step")]
    columns += [number_column(f"validation.{key}") for key in SET_KEYS]
    table = Table(columns)
    for name, lines in run.validations.items():
        newest = lines[-1]
        cells = [number(newest.get(key), "%" if key == "accuracy" else "") for key in SET_KEYS]
        table.rows.append([name, number(newest["step"]), *cells])
    return table


def named_table(run: RunRecord, key: str) -> Table | None:
    """Loss and tokens of each modality or source at the newest validation of each set; None where no line tells any.

    Args:
        run: the run.
        key: `by_modality` or `by_source`.
    """
    columns = [text_column("set"), text_column(key.removeprefix("by_")), number_column(f"validation.{key}")]
    table = Table([*columns, number_column("validation.trained_tokens")])
    for set_name, lines in run.validations.items():
        entries = lines[-1].get(key)
        for name, entry in (entries if isinstance(entries, dict) else {}).items():
            found = entry if isinstance(entry, dict) else {}
            table.rows.append([set_name, str(name), number(found.get("loss")), number(found.get("tokens"))])
    return table if table.rows else None
