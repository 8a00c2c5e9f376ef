"""docs/reliability.md: every row names a test that exists, events that exist, and no promise goes without."""

import re
from pathlib import Path

import pytest

from megatron_medx.run_folder.events import EVENTS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
COLUMNS = ["what happens", "what the run does", "what is lost", "event", "test"]


def tables() -> list[list[list[str]]]:
    """Tables of the page, each a list of rows of cells, the head first."""
    found, last = [], -2
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines()):
        if line.startswith("|"):
            if number != last + 1:
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
            last = number
    return found


ROWS = [row for table in tables() for row in table[2:]]


def test_tables_have_these_columns():
    assert [table[0] for table in tables()] == [COLUMNS, COLUMNS]
    assert len(ROWS) >= 15 and all(len(row) == len(COLUMNS) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_tests_and_events_that_exist(row):
    named = re.findall(r"`(tests/[\w/.]+\.py)::(\w+)`", row[-1])
    assert named, f"no test: {row[-1]}"
    for path, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), f"{path}::{name}"
    assert set(re.findall(r"`(\w+)`", row[3])) <= EVENTS.keys()


def test_every_survival_test_stands_in_the_table():
    """A test of what is survived that nobody reads of, or a row that lost its test, is found here."""
    text = (ROOT / "tests" / "slurm" / "real" / "test_slurm_survival.py").read_text(encoding="utf-8")
    tests = set(re.findall(r"^def (test_\w+)\(", text, re.MULTILINE))
    named = {name for row in ROWS for name in re.findall(r"::(\w+)`", row[-1])}
    assert tests - named <= {"test_every_run_was_checked_before_its_first_step"}
