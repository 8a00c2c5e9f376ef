"""Named windows, percentiles, and the view of a sample's image part."""

import numpy as np
import pytest

from megatron_medx.data.images.view import AS_STORED, ImageView
from megatron_medx.data.images.windows import WINDOWS_HU, PhysicalImage, named_windows, percentile_window
from megatron_medx.errors import DataError


def shown(values, name):
    return named_windows(PhysicalImage(np.array([values]), "HU", "RescaleType"), (name,), "x")[0, :, 0].tolist()


def test_the_docstrings_example():
    assert shown([-1350.0, -600.0, 150.0], "lung") == [0, 128, 255]


@pytest.mark.parametrize("name", WINDOWS_HU)
def test_a_window_ends_where_its_table_says(name):
    center, width = WINDOWS_HU[name]
    below, low, high, above = center - 2 * width, center - width / 2, center + width / 2, center + 2 * width
    assert shown([below, low, high, above], name) == [0, 0, 255, 255]
    assert 0 < shown([low + width / 100], name)[0] < shown([high - width / 100], name)[0] < 255


def test_values_in_another_unit_are_refused():
    with pytest.raises(DataError, match=r"CT-3: window brain asked .* \(RescaleType says OD\)"):
        named_windows(PhysicalImage(np.zeros((2, 2)), "OD", "RescaleType"), ("brain",), "CT-3")


def test_percentiles_of_the_values_that_count():
    values = np.array([[-2000.0, 0.0, 50.0, 100.0]])
    assert np.allclose(percentile_window(values, values[values >= 0]), [[0, 0, 0.5, 1]], atol=0.01)
    assert percentile_window(np.full((1, 2), 7)).tolist() == [[0, 0]]


def test_views_of_image_parts():
    part = {"type": "image", "image": "a.dcm"}
    assert ImageView.of(part) == AS_STORED == ImageView((), 0)
    assert ImageView.of(part | {"window": "lung", "frame": 2}) == ImageView(("lung",), 2)
    assert ImageView.of(part | {"window": ["lung", "bone", "brain"]}).windows == ("lung", "bone", "brain")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"window": "lungs"}, "window 'lungs'"),
        ({"window": ["lung", 3, "bone"]}, "window 3"),
        ({"window": ["lung", ["bone"], "bone"]}, r"window \['bone'\]"),
        ({"window": ["lung", "bone"]}, "2 windows"),
        ({"window": []}, r"window \[\]"),
        ({"window": ""}, "window ''"),
        ({"window": None}, "window None"),
        ({"window": {"lung": 1}}, "window {'lung': 1}"),
        ({"frame": -1}, "frame -1"),
        ({"frame": True}, "frame True"),
        ({"frame": "2"}, "frame '2'"),
        ({"frame": 1.0}, "frame 1.0"),
    ],
)
def test_what_is_no_view_is_refused(asked, found):
    with pytest.raises(ValueError, match=found) as error:
        ImageView.of(asked)
    assert len(error.value.args) == 2
