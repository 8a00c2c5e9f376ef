"""What a sample takes of a row, and what it loses to fit: one rule for the plan and for the encoder.

Comes in: the tokens of a sample's text and the sizes of its images, as the index has them. Goes out: which images stay
and how many patches each has. Text is never cut. Pure arithmetic, so that what the plan counted is what is encoded.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from megatron_medx.data.image_grid import smart_resize


@dataclass(frozen=True, slots=True)
class ImageExtent:
    """One image as the index has it."""

    width: int
    """px, as the image is shown: upright."""
    height: int
    """px."""
    span_tokens: int
    """Tokens that go with the image when it is dropped, its placeholder included; 0 for one that stays."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is left of a sample in a row."""

    tokens: int
    """Of the decoder, text and images."""
    kept: tuple[int, ...]
    """Numbers of the images that stay, ascending."""
    grids: tuple[tuple[int, int, int], ...]
    """(1, rows, columns) of patches of each image that stays."""

    @property
    def patches(self) -> int:
        """Of all images that stay, before merging."""
        return sum(frames * rows * columns for frames, rows, columns in self.grids)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What must not be exceeded, and how pixels become tokens."""

    tokens: int
    patches: int
    min_pixels: int
    max_pixels: int
    patch_size: int
    merge_size: int


def fit(
    text_tokens: int,
    images: Sequence[ImageExtent],
    limit_tokens: int,
    min_pixels: int,
    max_pixels: int,
    patch_size: int,
    merge_size: int,
    max_patches: int = 0,
) -> Fitted | None:
    """Shorten a sample until it fits a row: slices of stacks first, then resolution.

    A stack is an image without a span and the run of images with one behind it (`chat.image_spans`). It loses images
    evenly, the first and the last always stay; of several stacks each keeps the same share, at least two images, and as
    many stay as fit. Only when two images of each stack are too much do all images lose resolution: `max_pixels` is
    divided by sqrt(2) until the sample fits, down to one token an image, and `min_pixels` never exceeds it.

    Args:
        text_tokens: of the sample, each image counted as one placeholder.
        images: in their order.
        limit_tokens: most tokens; of rows with aligned samples the largest multiple of the alignment.
        min_pixels, max_pixels: area of an image, px.
        patch_size: side of a patch, px.
        merge_size: merge_size x merge_size patches are one token.
        max_patches: most patches of all images, before merging; 0 means no limit.

    Returns:
        None when even one token an image is too much.

    Example (patches of 16 px, 2 x 2 to a token, limit 40 tokens): text of 20 tokens with six slices of 64 x 64 px, 4
    tokens each, spans of 3 but for the first, has 20 + 6 x 3 = 38 tokens and stays whole. With a limit of 30 tokens,
    each slice that goes takes 3 + 3 tokens with it: 4 slices (0, 2, 3, 5) make 26 tokens, 5 would make 32.

    Raises:
        DataError: the sides of an image differ too much.
    """
    limits = _Limits(limit_tokens, max_patches, min_pixels, max_pixels, patch_size, merge_size)
    whole = _measured(text_tokens, images, range(len(images)), limits, max_pixels)
    if _fits(whole, limits):
        return whole
    stacks = _stacks(images)
    num_sliced = sum(len(stack) for stack in stacks)

    def thinned(num_kept: int) -> Fitted:
        dropped = set()
        for stack in stacks:
            dropped |= set(stack) - set(evenly(stack, max(2, len(stack) * num_kept // num_sliced)))
        return _measured(text_tokens, images, [i for i in range(len(images)) if i not in dropped], limits, max_pixels)

    least = thinned(0) if stacks else whole
    if _fits(least, limits):
        # images of a stack are of one size, so more never take less
        most = bisect_left(range(num_sliced), True, key=lambda num_kept: not _fits(thinned(num_kept), limits))
        return thinned(most - 1)
    for most_pixels in _lower_resolutions(limits):
        smaller = _measured(text_tokens, images, least.kept, limits, most_pixels)
        if _fits(smaller, limits):
            return smaller
    return None


def evenly(items: Sequence[int], count: int) -> list[int]:
    """`count` of the items at equal distances, the first and the last among them; all when there are no more.

    Example: 4 of 0..5 are 0, 2, 3, 5 (5/3 apart, rounded).
    """
    if count >= len(items):
        return list(items)
    last = count - 1
    return [items[(2 * step * (len(items) - 1) + last) // (2 * last)] for step in range(count)]


def _stacks(images: Sequence[ImageExtent]) -> list[list[int]]:
    """Numbers of the images of each stack."""
    runs = groupby(range(len(images)), key=lambda number: images[number].span_tokens > 0)
    can_go = [list(numbers) for with_span, numbers in runs if with_span]
    return [[numbers[0] - 1, *numbers] for numbers in can_go]


def _lower_resolutions(limits: _Limits) -> Iterator[int]:
    """`max_pixels` over sqrt(2), over 2, over sqrt(8), ..., and last the pixels of one token."""
    one_token = (limits.patch_size * limits.merge_size) ** 2
    halvings, pixels = 0, limits.max_pixels
    while pixels > one_token:
        halvings += 1
        pixels = max(one_token, math.isqrt(limits.max_pixels**2 >> halvings))
        yield pixels


def _measured(
    text_tokens: int, images: Sequence[ImageExtent], kept: Sequence[int], limits: _Limits, max_pixels: int
) -> Fitted:
    """The sample with these images at most so large."""
    patch, merge = limits.patch_size, limits.merge_size
    min_pixels = min(limits.min_pixels, max_pixels)
    grids, of_size = [], {}
    for number in kept:
        size = images[number].height, images[number].width
        if size not in of_size:
            tall, wide = smart_resize(*size, patch * merge, min_pixels, max_pixels)
            of_size[size] = 1, tall // patch, wide // patch
        grids.append(of_size[size])
    spans = sum(image.span_tokens for image in images) - sum(images[number].span_tokens for number in kept)
    image_tokens = sum(rows * columns // merge**2 for _, rows, columns in grids)
    return Fitted(text_tokens - spans + image_tokens - len(kept), tuple(kept), tuple(grids))


def _fits(fitted: Fitted, limits: _Limits) -> bool:
    return fitted.tokens <= limits.tokens and (not limits.patches or fitted.patches <= limits.patches)
