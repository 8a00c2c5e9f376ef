"""One source as an endless stream of samples: epoch after epoch, each in an order of its own.

Comes in: the source's table and a seed. Goes out: the samples between any two tokens of the stream.

An epoch is shuffled in two levels: the source's slabs of 256 neighboring samples in a seeded order, and, of every 256
slabs that follow one another there, all samples in a seeded order. So 65,536 samples from 256 places of the source are
mixed at a time, memory holds a number for each slab and such a block or two, and a place in the stream is found without
counting through samples.
"""

from functools import lru_cache

import numpy as np

SLAB_SAMPLES, BLOCK_SLABS = 256, 256

READ_SAMPLES = 2**20
"""Samples whose tokens are read at a time when slabs are measured; a multiple of a slab."""

SLABS, SAMPLES = 0, 1
"""What an order is for: no two orders of a run are made of the same numbers."""


def seeded_order(count: int, seed: int, stream: int, *part: int) -> np.ndarray:
    """A permutation of range(count), the same on every machine and in every numpy version.

    numpy promises the raw bits of its generators for ever, but not what `permutation` makes of them: so the bits are
    sort keys. (A tie among 64-bit keys keeps the old order.)
    """
    keys = np.random.Philox(np.random.SeedSequence([seed, stream, *part])).random_raw(count)
    return np.argsort(keys, kind="stable")


class SourceStream:
    """The samples of one source, again and again.

    A sample lies where its first token does: tokens of the samples before it are counted, epochs on end. Orders depend
    on the number of samples alone, so a sample without tokens is passed over and moves no other one out of turn.

    Args:
        table: (samples,) `TABLE` records; `tokens` is read.
        seed: of the run.
        source: number of the source; each has orders of its own.
    """

    def __init__(self, table: np.ndarray, seed: int, source: int):
        self._table, self._seed, self._source = table, seed, source
        self._slab_tokens = _slab_tokens(table["tokens"])
        self.tokens_per_epoch = int(self._slab_tokens.sum())
        """Tokens of all samples."""
        self._epoch = lru_cache(2)(self._epoch_order)
        self._block = lru_cache(2)(self._block_order)

    def between(self, start_tokens: int, end_tokens: int) -> np.ndarray:
        """(samples,) int64 of the samples whose first token lies in [start, end) of the stream, in their order."""
        if start_tokens >= end_tokens:
            return np.empty(0, dtype=np.int64)
        parts = []
        for epoch in range(start_tokens // self.tokens_per_epoch, (end_tokens - 1) // self.tokens_per_epoch + 1):
            before = epoch * self.tokens_per_epoch
            start, end = max(0, start_tokens - before), min(self.tokens_per_epoch, end_tokens - before)
            borders = self._epoch(epoch)[1]
            first, last = np.searchsorted(borders, [start, end - 1], side="right") - 1
            for block in range(first, last + 1):
                samples, starts = self._block(epoch, block)
                low, high = np.searchsorted(starts, [start, end])
                parts.append(samples[low:high])
        return np.concatenate(parts)

    def _epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Slabs in the order of an epoch, and the tokens before each block of them and before the end."""
        slabs = seeded_order(len(self._slab_tokens), self._seed, SLABS, self._source, epoch)
        blocks = np.add.reduceat(self._slab_tokens[slabs], np.arange(0, len(slabs), BLOCK_SLABS))
        return slabs, np.concatenate(([0], np.cumsum(blocks)))

    def _block_order(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples with tokens of a block of an epoch, in order, and where in the epoch the first token of each lies."""
        slabs, borders = self._epoch(epoch)
        of_block = slabs[block * BLOCK_SLABS :][:BLOCK_SLABS]
        samples = (of_block[:, None] * SLAB_SAMPLES + np.arange(SLAB_SAMPLES)).reshape(-1)
        samples = samples[samples < len(self._table)]
        samples = samples[seeded_order(len(samples), self._seed, SAMPLES, self._source, epoch, block)]
        tokens = self._table["tokens"][samples].astype(np.int64)
        samples, tokens = samples[tokens > 0], tokens[tokens > 0]
        return samples, borders[block] + np.cumsum(tokens) - tokens


def _slab_tokens(tokens: np.ndarray) -> np.ndarray:
    """(slabs,) int64 tokens of each slab."""
    parts = []
    for start in range(0, len(tokens), READ_SAMPLES):
        of_part = tokens[start : start + READ_SAMPLES].astype(np.int64)
        parts.append(np.add.reduceat(of_part, np.arange(0, len(of_part), SLAB_SAMPLES)))
    return np.concatenate(parts)
