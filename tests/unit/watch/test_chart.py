"""Curves in text keep what a person looks for: spikes, gaps, ends, and which curve is which."""

import math

import pytest

from megatron_medx.watch.chart import LABEL_WIDTH, MIN_HEIGHT, MIN_WIDTH, Curve, chart

NAN = math.nan


def curve_of(values, steps=None, label="run", mark="a"):
    return Curve(label, mark, "cyan", range(1, len(values) + 1) if steps is None else steps, values)


def drawn(*curves, width=60, height=10):
    """Lines as text; they are as many as asked for and none is wider."""
    lines = [line.plain for line in chart("loss (nats/token)", curves, width, height)]
    assert len(lines) == height and max(map(len, lines)) <= width
    return lines


def columns_with_dots(lines):
    """Of the rows between title and steps: numbers of the columns with anything in them."""
    rows = [line[LABEL_WIDTH:].ljust(200) for line in lines[1:-1]]
    return {number for row in rows for number, character in enumerate(row) if character != " "}


def test_a_falling_curve_begins_at_the_top_and_ends_at_the_bottom():
    lines = drawn(curve_of([10.0 - step / 10 for step in range(100)]))
    assert lines[0] == "loss (nats/token)"
    assert lines[1].startswith("     10┤") and lines[-2].startswith("    0.1┤")
    assert lines[1][LABEL_WIDTH] != " " and lines[-2][-1] != " "
    assert lines[-1].split() == ["step", "1", "100"]
    assert columns_with_dots(lines) == set(range(60 - LABEL_WIDTH))


@pytest.mark.parametrize("place", [0, 7, 50_000, 99_999])
def test_a_spike_of_one_step_of_many_reaches_the_top(place):
    values = [2.0 + math.sin(step) / 100 for step in range(100_000)]
    values[place] = 9.0
    lines = drawn(curve_of(values))
    column = round(place / 99_999 * (2 * (60 - LABEL_WIDTH) - 1)) // 2
    assert lines[1].startswith("      9┤") and lines[1][LABEL_WIDTH:].ljust(60)[column] != " "


def test_steps_without_a_value_are_a_gap():
    lines = drawn(curve_of([1.0] * 40 + [NAN] * 40 + [1.5] * 40))
    empty = set(range(60 - LABEL_WIDTH)) - columns_with_dots(lines)
    assert empty == set(range(18, 34))


def test_a_constant_is_a_line_in_the_middle():
    lines = drawn(curve_of([0.0] * 30), height=9)
    assert [bool(line[LABEL_WIDTH:].strip()) for line in lines[1:-1]] == [
        False,
        False,
        False,
        True,
        False,
        False,
        False,
    ]


def test_a_single_point_is_seen():
    lines = drawn(curve_of([3.0]))
    assert len(columns_with_dots(lines)) == 1 and "      3┤" not in lines[1]


@pytest.mark.parametrize("values", [[], [NAN, NAN]])
def test_without_a_value_it_says_so(values):
    assert "no value yet" in drawn(curve_of(values))[1]


def test_values_that_are_not_finite_do_not_matter():
    assert drawn(curve_of([1.0, math.inf, 2.0])) == drawn(curve_of([1.0, NAN, 2.0]))


def test_several_curves_have_their_marks_on_them_and_in_the_legend():
    high, low = curve_of([5.0] * 50, label="parent"), curve_of([1.0] * 30, label="child", mark="b")
    lines = drawn(high, low)
    assert lines[0] == "loss (nats/token)  a parent  b child"
    assert "a" in lines[1] and "b" in lines[-2] and "b" not in lines[1] and "a" not in lines[-2]
    alone = drawn(high)
    assert "a" not in "".join(alone[1:-1])


def test_a_short_curve_beside_a_long_one_has_its_mark_too():
    lines = drawn(curve_of([5.0] * 1000), curve_of([1.0, 1.0], mark="b", label="young"))
    assert "b" in lines[-2]


def test_a_long_legend_takes_lines_of_its_own():
    curves = [curve_of([1.0 * number] * 9, label=f"set-{number}", mark=f"{number}") for number in range(1, 7)]
    lines = drawn(*curves, width=40, height=10)
    assert all(f"{number} set-{number}" in "".join(lines[:4]) for number in range(1, 7))


def test_the_smallest_chart_still_has_all_its_parts():
    lines = drawn(curve_of([1.0, 2.0, 3.0]), width=MIN_WIDTH, height=MIN_HEIGHT)
    assert lines[0].startswith("loss") and "step" in lines[-1] and columns_with_dots(lines)
