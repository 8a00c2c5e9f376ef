"""Which samples form row j of a run: a pure function of (lengths, seed, j), with no buffer and no hidden state.

Comes in: the length of every sample, and what lengths are rounded up to. Goes out: sample indices for any row of the
endless run, in any order of asking. Resume is one integer, and the number of ranks plays no part: ranks ask for the
rows they are dealt.
"""

from bisect import bisect_left, insort

import numpy as np


class RowPlan:
    """The order of all rows of a run that never ends.

    Samples are joined into rows once, from a seeded shuffle; each epoch goes through all rows in an order of its own.
    That the same samples stay together costs nothing, since attention never crosses samples, and it makes every epoch
    equally long, so that row j is found without counting through the epochs before it.

    Args:
        lengths: tokens of each sample; rounded up, each at most `seq_len_tokens`.
        seq_len_tokens: capacity of a row.
        packing: False puts one sample into each row.
        seed: of the joining and of the order.
        sample_align_tokens: a sample takes its length of the row, rounded up to a multiple of this.
    """

    def __init__(self, lengths: list[int], seq_len_tokens: int, packing: bool, seed: int, sample_align_tokens: int = 1):
        aligned = [aligned_tokens(length, sample_align_tokens) for length in lengths]
        assert aligned and max(aligned) <= seq_len_tokens, "encode refuses samples that are longer than a row"
        self._num_tokens = sum(lengths)
        self._seq_len_tokens = seq_len_tokens
        self._seed = seed
        if packing:
            self._rows = _join(aligned, seq_len_tokens, seeded_order(len(lengths), seed, stream=0))
        else:
            self._rows = [[index] for index in range(len(lengths))]
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)  # the last order asked for, only to be quick

    @property
    def rows_per_epoch(self) -> int:
        """Rows in which every sample occurs exactly once."""
        return len(self._rows)

    @property
    def waste(self) -> float:
        """Share of the rows' capacity that no sample's token fills, 0..1; alignment is waste."""
        return 1 - self._num_tokens / (self.rows_per_epoch * self._seq_len_tokens)

    def row(self, j: int) -> list[int]:
        """Sample indices of the j-th row of the run, j from 0 without end."""
        epoch, place = divmod(j, self.rows_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, seeded_order(self.rows_per_epoch, self._seed, stream=epoch + 1)
        return list(self._rows[self._order[place]])


def aligned_tokens(tokens: int, multiple: int) -> int:
    """Return `tokens` rounded up to a multiple: (5, 4) gives 8, (8, 4) gives 8."""
    return -(-tokens // multiple) * multiple


def seeded_order(count: int, seed: int, stream: int) -> np.ndarray:
    """A permutation of range(count), the same on every machine and in every numpy version.

    numpy promises the raw bits of its generators for ever, but not what `permutation` makes of them: so the bits are
    sort keys. (A tie among 64-bit keys keeps the old order.)
    """
    keys = np.random.Philox(np.random.SeedSequence([seed, stream])).random_raw(count)
    return np.argsort(keys, kind="stable")


def _join(lengths: list[int], capacity: int, order: np.ndarray) -> list[list[int]]:
    """Best fit: each sample, in the given order, goes into the fullest row that still has room, else into a new one.

    Example (capacity 10, lengths in order 6, 5, 4, 3, 2): rows [6, 4], [5, 3, 2].
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, row), ascending
    for index in order.tolist():
        length = lengths[index]
        fit = bisect_left(room, (length, -1))
        if fit < len(room):
            free, row = room.pop(fit)
        else:
            free, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        if free > length:
            insort(room, (free - length, row))
    return rows
