"""What every number of the page means, one click away: the rows of run_folder/quantities.py with a name to click on."""

from dataclasses import dataclass

from megatron_medx.run_folder.quantities import DERIVED, RANKS, STEP, VALIDATION, Quantity

TABLES: dict[str, dict[str, Quantity]] = {"step": STEP, "validation": VALIDATION, "ranks": RANKS, "derived": DERIVED}
"""First half of a number's name on the page -> the table that it stands in."""

TITLES = {
    "step": "Of each step (metrics.jsonl)",
    "validation": "Of each validation (validation.jsonl)",
    "ranks": "Of each rank (ranks.jsonl)",
    "derived": "Worked out from these",
}


@dataclass(frozen=True, slots=True)
class Definition:
    """A quantity that the page can show."""

    id: str
    """Of its element on the page: `what-step-loss`."""
    label: str
    unit: str
    meaning: str


def definition(name: str) -> Definition:
    """The definition of `table.key`, for instance `step.loss`.

    Raises:
        KeyError: no such table, or no such quantity in it.
    """
    table, _, key = name.partition(".")
    found = TABLES[table][key]
    return Definition(f"what-{table}-{key.replace('_', '-')}", found.label, found.unit, found.meaning)


def all_definitions() -> dict[str, list[Definition]]:
    """Title -> definitions, of each table."""
    return {TITLES[table]: [definition(f"{table}.{key}") for key in rows] for table, rows in TABLES.items()}
