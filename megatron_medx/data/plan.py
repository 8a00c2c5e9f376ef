"""Which samples form row j of a run: a pure function of (lengths, seed, j), with no buffer and no hidden state.

Comes in: the length of every sample, and what lengths are rounded up to. Goes out: sample indices for any row of the
endless run, in any order of asking. Resume is one integer, and the number of ranks plays no part: ranks ask for the
rows they are dealt.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np


class RowPlan:
    """The order of all rows of a run that never ends.

    Samples are joined into rows once, from a seeded shuffle; each epoch goes through all rows in an order of its own.
    That the same samples stay together costs nothing, since attention never crosses samples, and it makes every epoch
    equally long, so that row j is found without counting through the epochs before it.

    Planning is linear in the samples (`python -m benchmarks.plan`).

    Args:
        lengths: tokens of each sample, a list or an array; rounded up, each at most `seq_len_tokens`.
        seq_len_tokens: capacity of a row.
        packing: False puts one sample into each row.
        seed: of the joining and of the order.
        sample_align_tokens: a sample takes its length of the row, rounded up to a multiple of this.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        seq_len_tokens: int,
        packing: bool,
        seed: int,
        sample_align_tokens: int = 1,
    ):
        aligned = aligned_tokens(np.asarray(lengths, dtype=np.int32), sample_align_tokens)
        assert aligned.size and aligned.max() <= seq_len_tokens, "encode refuses samples that are longer than a row"
        self._num_tokens = int(np.sum(lengths, dtype=np.int64))
        self._seq_len_tokens = seq_len_tokens
        self._seed = seed
        self._samples = np.arange(len(aligned), dtype=np.int32)
        """Samples of the first row, then of the second, and so on; row r has those from starts[r] to starts[r + 1]."""
        self._starts = np.arange(len(aligned) + 1)
        if packing:
            self._samples, self._starts = _join(aligned, seq_len_tokens, seeded_order(len(aligned), seed, stream=0))
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)  # the last order asked for, only to be quick

    @property
    def rows_per_epoch(self) -> int:
        """Rows in which every sample occurs exactly once."""
        return len(self._starts) - 1

    @property
    def waste(self) -> float:
        """Share of the rows' capacity that no sample's token fills, 0..1; alignment is waste."""
        return 1 - self._num_tokens / (self.rows_per_epoch * self._seq_len_tokens)

    def row(self, j: int) -> list[int]:
        """Sample indices of the j-th row of the run, j from 0 without end."""
        epoch, place = divmod(j, self.rows_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, seeded_order(self.rows_per_epoch, self._seed, stream=epoch + 1)
        start, end = self._starts[self._order[place] :][:2]
        return self._samples[start:end].tolist()


def aligned_tokens[Tokens: (int, np.ndarray)](tokens: Tokens, multiple: int) -> Tokens:
    """Return `tokens`, a number or an array, rounded up to a multiple: (5, 4) gives 8, (8, 4) gives 8."""
    return -(-tokens // multiple) * multiple


def seeded_order(count: int, seed: int, stream: int) -> np.ndarray:
    """A permutation of range(count), the same on every machine and in every numpy version.

    numpy promises the raw bits of its generators for ever, but not what `permutation` makes of them: so the bits are
    sort keys. (A tie among 64-bit keys keeps the old order.)
    """
    keys = np.random.Philox(np.random.SeedSequence([seed, stream])).random_raw(count)
    return np.argsort(keys, kind="stable")


def _join(lengths: np.ndarray, capacity: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best fit: each sample, in the given order, goes into the fullest row that still has room, else into a new one.

    Of equally full rows the first takes it. A row is forgotten when no sample fits any more; the others stand in a heap
    for each number of free tokens, of which there are at most `capacity`: so a sample costs the same in any corpus.

    Returns:
        (samples,) int32 of the first row, of the second, and so on, and (rows + 1,) int64 where each row starts.

    Example (capacity 10, lengths in order 6, 5, 4, 3, 2): rows [6, 4], [5, 3, 2].
    """
    shortest = max(1, int(lengths.min()))
    row_of, num_rows = array("i"), 0  # of each sample, in the given order
    rows_with: dict[int, list[int]] = {}  # tokens free -> rows, a heap
    frees: list[int] = []  # the keys of rows_with, ascending
    for length in memoryview(lengths[order]):
        fit = bisect_left(frees, length)
        if fit < len(frees):
            free = frees[fit]
            row = heappop(rows_with[free])
            if not rows_with[free]:
                del rows_with[free], frees[fit]
        else:
            free, row = capacity, num_rows
            num_rows += 1
        row_of.append(row)
        left = free - length
        if left >= shortest:
            if left not in rows_with:
                rows_with[left] = []
                insort(frees, left)
            heappush(rows_with[left], row)
    rows = np.frombuffer(row_of, dtype=np.int32)
    starts = np.concatenate(([0], np.cumsum(np.bincount(rows))))
    return order[np.argsort(rows, kind="stable")].astype(np.int32), starts
