"""A thinned curve is short and still tells of every spike, gap and end."""

import math

import pytest

from megatron_medx.status.thinning import thin

NAN = math.nan


def test_the_example_of_the_docstring():
    steps, values = thin(range(1, 9), [1, 9, 1, 1, NAN, 1, 1, 1], 5)
    assert steps == [1, 2, 5, 8] and values[:2] == [1, 9] and math.isnan(values[2]) and values[3] == 1


def test_a_short_curve_stays():
    assert thin([3, 4], [1.0, 2.0], 5) == ([3, 4], [1.0, 2.0])
    assert thin([], [], 5) == ([], [])


@pytest.mark.parametrize("max_points", [5, 50, 999])
@pytest.mark.parametrize("place", [0, 1, 4_321, 9_998, 9_999])
def test_a_spike_of_one_step_and_a_gap_of_one_step_survive(place, max_points):
    for odd in (99.0, -99.0, NAN):
        curve = [math.sin(number / 300) for number in range(10_000)]
        curve[place] = odd
        steps, values = thin(range(10_000), curve, max_points)
        assert len(steps) <= max_points and steps == sorted(set(steps))
        assert (place, str(odd)) in {(step, str(value)) for step, value in zip(steps, values, strict=True)}
        assert (steps[0], steps[-1]) == (0, 9_999)


def test_every_point_is_one_of_the_curve():
    curve = [(number * 7919) % 1000 / 10 for number in range(5_000)]
    steps, values = thin(range(5_000), curve, 120)
    assert [curve[step] for step in steps] == values
    assert (min(values), max(values)) == (min(curve), max(curve))


def test_a_curve_of_gaps_alone_stays_one():
    steps, values = thin(range(100), [NAN] * 100, 20)
    assert all(map(math.isnan, values)) and len(steps) <= 20
