"""Turns to the radiological convention, for every way in which a plane can be stored."""

from itertools import permutations, product

import numpy as np
import pytest
from PIL import Image

from megatron_medx.data.images.orientation import DIRECTIONS, PLANES, normal_of, plane_of, turn_of, turned

LETTERS = {vector: letter for letter, vector in DIRECTIONS.items()}


def labeled(to_right, to_bottom):
    """A picture of 3 x 2 px whose values are the patient coordinates of its pixels, one channel an axis."""
    columns, rows = np.meshgrid(np.arange(3), np.arange(2))
    values = columns[..., None] * np.array(to_right) + rows[..., None] * np.array(to_bottom) + 100
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize(("axis_right", "axis_bottom"), list(permutations(range(3), 2)))
def test_every_stored_order_is_turned_to_the_convention(axis_right, axis_bottom):
    for sign_right, sign_bottom in product((1, -1), repeat=2):
        to_right, to_bottom = (
            np.eye(3, dtype=int)[axis_right] * sign_right,
            np.eye(3, dtype=int)[axis_bottom] * sign_bottom,
        )
        turn = turn_of(to_right, to_bottom)
        image = turned(labeled(to_right, to_bottom), turn)
        seen = np.asarray(image).astype(int)
        letters = LETTERS[tuple(seen[0, 1] - seen[0, 0])], LETTERS[tuple(seen[1, 0] - seen[0, 0])]
        plane = plane_of(to_right, to_bottom)
        assert letters == PLANES[plane]
        assert plane == ("sagittal", "coronal", "axial")[3 - axis_right - axis_bottom]


def test_the_docstrings_example():
    assert turn_of((1, 0, 0), (0, -1, 0)) == Image.Transpose.FLIP_TOP_BOTTOM


def tilted(degrees):
    angle = np.radians(degrees)
    return (np.cos(angle), np.sin(angle), 0), (-np.sin(angle), np.cos(angle), 0)


def test_planes_between_the_axes_stay_as_stored():
    assert plane_of(*tilted(29)) == "axial" and turn_of(*tilted(29)) is None
    assert plane_of(*tilted(31)) == "" and turn_of(*tilted(31)) is None
    assert turn_of(*tilted(180 + 29)) == Image.Transpose.ROTATE_180 and turn_of(*tilted(180 + 31)) is None
    assert plane_of((0, 0, 0), (0, 1, 0)) == ""
    assert plane_of((1, 0, 0), (1, 0, 0)) == ""


@pytest.mark.parametrize(
    ("to_right", "to_bottom", "normal"),
    [
        ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ((0, 1, 0), (1, 0, 0), (0, 0, 1)),
        ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
        ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
        ((1, 0, 0), (0, -0.8, 0.6), (0, 0.6, 0.8)),
    ],
)
def test_normals_point_to_head_back_or_left(to_right, to_bottom, normal):
    assert np.allclose(normal_of(to_right, to_bottom), normal, atol=1e-12)
