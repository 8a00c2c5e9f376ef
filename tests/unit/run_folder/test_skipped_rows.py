"""Rows that a rolled back run leaves out: the laws of the mapping, and the file that outlives a crash."""

import random

import pytest

from megatron_medx.errors import CheckpointError
from megatron_medx.run_folder import skipped_rows
from megatron_medx.run_folder.skipped_rows import SkippedRows, add_skip, merged, num_skipped, read_skips, row_at


def skips_of(*ranges):
    return [SkippedRows(first, last, from_step=1) for first, last in ranges]


def rows(ranges, count):
    return [row_at(position, ranges) for position in range(count)]


def test_without_skips_a_position_is_its_row():
    assert rows([], 5) == [0, 1, 2, 3, 4]


def test_the_example_of_the_module():
    assert rows(merged(skips_of((2, 3), (6, 6))), 7) == [0, 1, 4, 5, 7, 8, 9]
    assert row_at(4, [(2, 3), (6, 6)]) == 7


def test_the_first_rows_may_be_skipped():
    assert rows([(0, 3)], 3) == [4, 5, 6]


def test_ranges_that_overlap_or_touch_become_one():
    assert merged(skips_of((8, 11), (2, 3), (10, 15))) == [(2, 3), (8, 15)]
    assert merged(skips_of((4, 7), (0, 3))) == [(0, 7)]
    assert merged(skips_of((0, 9), (2, 3))) == [(0, 9)]
    assert merged(skips_of((0, 3), (5, 7))) == [(0, 3), (5, 7)]


@pytest.mark.parametrize("seed", range(20))
def test_positions_give_the_rows_that_are_not_skipped_in_order(seed):
    """Against counting: the p-th of the rows that are in no range."""
    draw = random.Random(seed)
    skips = []
    for _ in range(draw.randrange(6)):
        first = draw.randrange(60)
        skips += skips_of((first, first + draw.randrange(12)))
    left_out = {row for skip in skips for row in range(skip.first, skip.last + 1)}
    kept = [row for row in range(300) if row not in left_out]
    assert num_skipped(merged(skips)) == len(left_out)
    assert rows(merged(skips), 100) == kept[:100]


@pytest.mark.parametrize("seed", range(20))
def test_a_rollback_leaves_the_rows_of_all_positions_before_it_as_they_were(seed):
    """However often: what was trained is trained, and nothing in between comes twice or is lost."""
    draw, skips, position = random.Random(seed), [], 0
    for step in range(6):
        before = merged(skips)
        position += draw.randrange(20)
        last = position + draw.randrange(1, 12) - 1
        skips.append(SkippedRows(row_at(position, before), row_at(last, before), from_step=step))
        after = merged(skips)
        assert rows(after, position) == rows(before, position)
        assert row_at(position, after) == row_at(last + 1, before)


def test_what_is_added_is_read_again_in_order(tmp_path):
    assert read_skips(tmp_path) == []
    wanted = [SkippedRows(8, 15, from_step=4), SkippedRows(2, 3, from_step=9)]
    for skip in wanted:
        add_skip(tmp_path, skip)
    assert read_skips(tmp_path) == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["skipped_rows.jsonl"]


def test_a_disk_that_takes_nothing_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    add_skip(tmp_path, SkippedRows(8, 15, from_step=4))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(skipped_rows.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        add_skip(tmp_path, SkippedRows(20, 23, from_step=6))
    assert read_skips(tmp_path) == [SkippedRows(8, 15, from_step=4)]


@pytest.mark.parametrize(
    "line",
    ["", '{"first": 8', '{"first": 8, "last": 7, "from_step": 1}', '{"first": -1, "last": 7, "from_step": 1}',
     '{"last": 7}', "[8, 9]", '{"first": "a", "last": 7, "from_step": 1}'],
)  # fmt: skip
def test_a_spoiled_file_is_refused(line, tmp_path):
    add_skip(tmp_path, SkippedRows(2, 3, from_step=1))
    with open(tmp_path / "skipped_rows.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(CheckpointError, match="line 2"):
        read_skips(tmp_path)
