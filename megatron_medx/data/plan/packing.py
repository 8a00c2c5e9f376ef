"""Samples joined into rows that hold so many tokens and so many patches.

Comes in: what each sample takes of both. Goes out: the row of each. Nothing here knows what a sample is or where it
came from.
"""

from array import array
from bisect import bisect_left, insort
from heapq import heappop, heappush

import numpy as np

PATIENCE = 32
"""Samples that a row may lack room for in the other measure before it is closed. So failed looks are at most so many a
row, and a sample costs the same in any corpus."""


def join(tokens: np.ndarray, patches: np.ndarray, most_tokens: int, most_patches: int = 0) -> np.ndarray:
    """Put each sample, in its order, into the fullest row that has room for it, else into a new one: best fit.

    How full a row is counts in tokens, or in patches where these are scarcer. Of equally full rows the first is looked
    at. A row that has room in this measure but, 32 times, not in the other one is closed.

    Args:
        tokens: (samples,) each at most `most_tokens`.
        patches: (samples,) each at most `most_patches`, if that is not 0.
        most_tokens: of a row.
        most_patches: of a row; 0 means no limit.

    Returns:
        (samples,) int32 row of each; rows are numbered as they are opened.

    Example (10 tokens a row, samples of 6, 5, 4, 3, 2 tokens): rows 0 1 0 1 1, that is [6, 4], [5, 3, 2].
    """
    assert len(tokens) and tokens.max() <= most_tokens, "the table has no sample that is longer than a row"
    if not most_patches:
        return _best_fit(tokens, most_tokens, np.zeros_like(tokens), 0)
    assert patches.max() <= most_patches, "the table has no sample with more patches than a row"
    if tokens.sum(dtype=np.int64) * most_patches >= patches.sum(dtype=np.int64) * most_tokens:
        return _best_fit(tokens, most_tokens, patches, most_patches)
    return _best_fit(patches, most_patches, tokens, most_tokens)


def _best_fit(sizes: np.ndarray, capacity: int, others: np.ndarray, other_capacity: int) -> np.ndarray:
    """Best fit by `sizes`, with room in `others` as well.

    Rows with equally much room stand in a heap; a row that no sample fits any more is forgotten. So there are at most
    `capacity` heaps, whatever the number of samples.
    """
    least, other_least = int(sizes.min()), int(others.min())
    row_of = array("i")
    other_free: list[int] = []  # of each row
    failed: list[int] = []  # looks at each row
    rows_with: dict[int, list[int]] = {}  # room left -> rows, a heap
    frees: list[int] = []  # the keys of rows_with, ascending
    for size, other in zip(sizes.tolist(), others.tolist(), strict=True):
        place = bisect_left(frees, size)
        free, row = capacity, -1
        while place < len(frees):
            free = frees[place]
            first = rows_with[free][0]
            fits = other_free[first] >= other
            failed[first] += not fits
            emptied = False
            if fits or failed[first] == PATIENCE:
                heappop(rows_with[free])
                emptied = not rows_with[free]
                if emptied:
                    del rows_with[free], frees[place]
            if fits:
                row = first
                break
            place += not emptied
        if row < 0:
            free, row = capacity, len(other_free)
            other_free.append(other_capacity)
            failed.append(0)
        row_of.append(row)
        other_free[row] -= other
        left = free - size
        if left >= least and other_free[row] >= other_least:
            if left not in rows_with:
                rows_with[left] = []
                insort(frees, left)
            heappush(rows_with[left], row)
    return np.frombuffer(row_of, dtype=np.int32)
