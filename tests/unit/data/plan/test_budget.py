"""What a sample loses to fit a row: slices evenly, then resolution, never text."""

import itertools

import numpy as np
import pytest

from megatron_medx.data.plan.budget import ImageExtent, evenly, fit
from megatron_medx.errors import DataError

FIRST, SLICE = ImageExtent(64, 64, 0), ImageExtent(64, 64, 3)  # 4 tokens at 16 px a patch, 2 x 2 to a token
PICTURE = ImageExtent(128, 96, 0)  # 12 tokens
PIXELS = {"min_pixels": 1024, "max_pixels": 10**6, "patch_size": 16, "merge_size": 2}


def stack(count):
    """So many slices."""
    return [FIRST, *[SLICE] * (count - 1)]


def test_a_sample_that_fits_stays_whole():
    fitted = fit(20, [FIRST, PICTURE], 40, **PIXELS)
    assert (fitted.tokens, fitted.kept) == (20 + 3 + 11, (0, 1))
    assert fitted.grids == ((1, 4, 4), (1, 6, 8)) and fitted.patches == 16 + 48
    assert fit(20, [], 20, **PIXELS).tokens == 20
    assert fit(21, [], 20, **PIXELS) is None


@pytest.mark.parametrize(
    ("limit", "tokens", "kept"),
    [
        (38, 38, (0, 1, 2, 3, 4, 5)),
        (37, 32, (0, 1, 3, 4, 5)),
        (31, 26, (0, 2, 3, 5)),
        (25, 20, (0, 3, 5)),
        (14, 14, (0, 5)),
    ],
)
def test_a_stack_loses_slices_evenly_and_as_few_as_can_be(limit, tokens, kept):
    """Six slices of 4 tokens, whose spans take 3 of the 20 tokens of text each."""
    fitted = fit(20, stack(6), limit, **PIXELS)
    assert (fitted.tokens, fitted.kept) == (tokens, kept)
    assert set(fitted.grids) == {(1, 4, 4)}


def test_then_all_images_lose_resolution_down_to_one_token():
    """Two slices are left: 8 tokens of text without them are 2, with two of one token each 8."""
    smallest = fit(20, stack(6), 8, **PIXELS)
    assert (smallest.tokens, smallest.kept, smallest.grids) == (8, (0, 5), ((1, 2, 2), (1, 2, 2)))
    assert fit(20, stack(6), 7, **PIXELS) is None


def test_pictures_without_a_span_only_lose_resolution():
    fitted = fit(10, [PICTURE] * 3, 30, **PIXELS)
    assert fitted.kept == (0, 1, 2) and fitted.tokens <= 30
    assert fitted.grids[0] < (1, 6, 8)


def test_the_largest_resolution_that_fits():
    """Areas are 10^6 / sqrt(2)^n; one step more would not fit."""
    large = ImageExtent(1000, 1000, 0)  # 31 x 31 tokens
    areas = [10**6 / 2 ** (n / 2) for n in range(30)]
    sides = [int(area**0.5) // 32 for area in areas]
    for limit in (960, 700, 400, 150, 20, 2):
        best = next(max(side, 1) ** 2 for side in sides if max(side, 1) ** 2 <= limit)
        assert fit(1, [large], limit, **PIXELS).tokens == best


def test_min_pixels_gives_way():
    """An image that is scaled up to 64 tokens still comes down to one."""
    pixels = PIXELS | {"min_pixels": 65536, "max_pixels": 65536}
    assert fit(1, [FIRST], 64, **pixels).tokens == 64
    assert fit(1, [ImageExtent(64, 64, 0)], 1, **pixels).grids == ((1, 2, 2),)


def test_patches_have_a_limit_of_their_own():
    fitted = fit(20, stack(6), 1000, **PIXELS, max_patches=50)
    assert (fitted.kept, fitted.patches) == ((0, 3, 5), 48)
    assert fit(20, stack(6), 1000, **PIXELS, max_patches=7) is None


def test_several_stacks_keep_the_same_share_and_two_images_each():
    """20 and 4 slices with a picture between them."""
    images = [*stack(20), PICTURE, *stack(4)]
    for limit in range(60, 150):
        fitted = fit(80, images, limit, **PIXELS)
        if fitted is None:
            continue
        first = [number for number in fitted.kept if number < 20]
        second = [number for number in fitted.kept if number > 20]
        assert 20 in fitted.kept and {0, 19, 21, 24} <= set(fitted.kept)
        assert len(second) == max(2, len(first) // 5) or abs(len(first) / 20 - len(second) / 4) <= 0.25
        assert fitted.tokens <= limit


def test_fewer_tokens_of_room_never_keep_more():
    images = [SLICE] * 7 + [PICTURE] + [SLICE] * 12
    sizes = [fit(120, images, limit, **PIXELS) for limit in range(200, 60, -1)]
    for larger, smaller in itertools.pairwise(sizes):
        assert smaller is None or len(smaller.kept) <= len(larger.kept)


@pytest.mark.parametrize(("count", "of"), [(2, 300), (7, 300), (299, 300), (5, 5), (9, 5), (3, 4)])
def test_evenly(count, of):
    chosen = evenly(range(of), count)
    assert len(chosen) == min(count, of) == len(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, of - 1)
    gaps = np.diff(chosen)
    assert gaps.max() - gaps.min() <= 1
    assert evenly([0, 1, 2, 3, 4, 5], 4) == [0, 2, 3, 5]


def test_a_shape_that_no_processor_takes():
    with pytest.raises(DataError, match="201 x 1 px"):
        fit(5, [ImageExtent(201, 1, 0)], 100, **PIXELS)
