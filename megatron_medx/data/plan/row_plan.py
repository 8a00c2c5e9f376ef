"""Which samples form row j of a run: a pure function of (tables, mixture, seed, j), with no buffer and no hidden state.

Comes in: the tables of the sources (table.py) and their shares (mixture.py). Goes out: the samples of any row, in any
order of asking. Resume is one integer, and the number of ranks plays no part: ranks ask for the rows they are dealt.

A run is cut into blocks of tokens. Each source gives a block its share of the next samples of its shuffled stream
(stream.py); these are laid side by side and joined into rows (packing.py). Planning streams: in memory are a few blocks
and a number for each 256 samples.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from math import isqrt

import numpy as np

from megatron_medx.config.run import RunConfig
from megatron_medx.data.plan.mixture import MixtureSource
from megatron_medx.data.plan.packing import join
from megatron_medx.data.plan.stream import SourceStream
from megatron_medx.data.plan.stream import seeded_order as seeded_order  # until its users ask stream
from megatron_medx.errors import DataError

BLOCK_ROWS = 1024
"""Rows' worth of tokens that a block has at most: what is joined at a time."""

LEAST_BLOCK_ROWS = 64
"""The same where weights change quickly. Within a block they are constant, so that 1,000 rows that end in the middle of
one miss a ramp from 0 to 1 over R rows by block^2 / 8,000 R: 0.2 % with blocks of 4 sqrt(R) rows. With fewer than 64,
the last rows of blocks would waste too much."""

CHECKED_BLOCKS = 8
"""Blocks that are planned to tell how many rows the epoch limits allow."""


def aligned_tokens[Tokens: (int, np.ndarray)](tokens: Tokens, multiple: int) -> Tokens:
    """Return `tokens`, a number or an array, rounded up to a multiple: (5, 4) gives 8, (8, 4) gives 8."""
    return -(-tokens // multiple) * multiple


class RowPlan:
    """The order of all rows of a run.

    With one source, or without weights, every epoch has each sample exactly once and ends with a block. With weights
    each source has epochs of its own.

    To find row j the blocks before it are planned, once in each process, to count their rows; planning is linear in the
    samples (`python -m benchmarks.plan`). Not for several threads at once.

    Args:
        tables: of each source, (samples,) `TABLE` records.
        mixture: the sources, in the same order.
        seq_len_tokens: capacity of a row.
        packing: False puts one sample into each row.
        seed: of all orders.
        sample_align_tokens: a sample takes its length of the row, rounded up to a multiple of this.
        max_row_patches: most patches of a row; 0 means no limit.
        rows_of_blocks: of an equal plan: the rows of these first blocks are not counted again.

    Raises:
        DataError: a source has no sample that fits a row.
    """

    def __init__(
        self,
        tables: Sequence[np.ndarray],
        mixture: Sequence[MixtureSource],
        *,
        seq_len_tokens: int,
        packing: bool,
        seed: int,
        sample_align_tokens: int = 1,
        max_row_patches: int = 0,
        rows_of_blocks: Sequence[int] = (),
    ):
        self._tables, self._mixture = list(tables), list(mixture)
        self._seq_len_tokens, self._packing, self._seed = seq_len_tokens, packing, seed
        self._align, self._max_row_patches = sample_align_tokens, max_row_patches
        self._streams = [SourceStream(table, seed, number) for number, table in enumerate(self._tables)]
        for source, stream in zip(self._mixture, self._streams, strict=True):
            if not stream.tokens_per_epoch:
                raise DataError(
                    f"{source.path} has no sample that fits a row of {seq_len_tokens} tokens",
                    "at least one",
                    "raise data.seq_len_tokens or data.max_row_patches, or take the source out",
                )
        totals = [stream.tokens_per_epoch for stream in self._streams]
        self._borders = _Borders(self._mixture, totals, seq_len_tokens)
        self._rows_before = [0, *accumulate(rows_of_blocks)]
        self._block = lru_cache(4)(self._make_block)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of all samples of all sources."""
        return self._borders.tokens_per_epoch

    @property
    def blocks_per_epoch(self) -> int:
        """Blocks in which so many tokens pass: without weights, those in which every sample occurs exactly once."""
        return self._borders.blocks_per_epoch

    @property
    def rows_of_blocks(self) -> list[int]:
        """Rows of the first blocks, as far as they have been planned."""
        return np.diff(self._rows_before).tolist()

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the first epoch; the others have about as many."""
        return self.rows_before(self.blocks_per_epoch)

    def row(self, j: int) -> list[tuple[int, int]]:
        """(source, sample) of each sample of the j-th row of the run, j from 0.

        Raises:
            DataError: the epoch limits of the sources are reached before.
        """
        block, place = self._place(j)
        span = slice(*block.starts[place : place + 2].tolist())
        return list(zip(block.sources[span].tolist(), block.samples[span].tolist(), strict=True))

    def cost(self, j: int) -> float:
        """FLOPs of the samples of row j, forward and backward, as the tables have them; its tail is not counted."""
        block, place = self._place(j)
        return float(block.costs[place])

    def rows_before(self, num_blocks: int) -> int:
        """Rows of the first so many blocks.

        Raises:
            DataError: the epoch limits allow fewer.
        """
        while len(self._rows_before) <= num_blocks:
            number = len(self._rows_before) - 1
            if self._borders.at(number + 1) is None:
                raise self._exhausted(number)
            self._rows_before.append(self._rows_before[-1] + len(self._block(number).costs))
        return self._rows_before[num_blocks]

    def waste(self, num_blocks: int | None = None) -> float:
        """Share of the rows' capacity that no sample's token fills, 0..1; alignment is waste.

        Args:
            num_blocks: looked at, from the first on; None means those of the first epoch.
        """
        num_blocks = self.blocks_per_epoch if num_blocks is None else num_blocks
        rows = self.rows_before(num_blocks)
        return 1 - sum(self._borders.at(num_blocks)) / (rows * self._seq_len_tokens)

    def check_enough(self, num_rows: int) -> None:
        """Refuse a run of more rows than the epoch limits of the sources allow.

        At most the first 8 blocks are planned; rows of a run with more are counted in proportion, and 2 % too many are
        let pass.

        Raises:
            DataError: with the rows that there are.
        """
        if all(source.max_epochs is None for source in self._mixture):
            return
        num_blocks = 0
        while sum(self._borders.at(num_blocks)) < num_rows * self._seq_len_tokens:
            if self._borders.at(num_blocks + 1) is None:
                break
            num_blocks += 1
        else:
            return
        planned = min(num_blocks, CHECKED_BLOCKS)
        rows = self.rows_before(planned)
        if planned < num_blocks:
            rows = int(1.02 * rows * sum(self._borders.at(num_blocks)) / sum(self._borders.at(planned)))
        if rows < num_rows:
            raise DataError(f"max_epochs ends the data after {rows} rows", f"{num_rows} rows", self._how_to_go_on())

    def _place(self, j: int) -> tuple["_Block", int]:
        """The block of row j, and the number of the row in it."""
        while self._rows_before[-1] <= j:
            self.rows_before(len(self._rows_before))
        number = bisect_right(self._rows_before, j) - 1
        return self._block(number), j - self._rows_before[number]

    def _make_block(self, number: int) -> "_Block":
        """Plan one block; without samples (a share below one sample) it has no rows."""
        ends = zip(self._borders.at(number), self._borders.at(number + 1), strict=True)
        given = [stream.between(*span) for stream, span in zip(self._streams, ends, strict=True)]
        samples = np.concatenate(given)
        sources = np.repeat(np.arange(len(given)), [len(of_source) for of_source in given])
        of_sources = [table[own] for table, own in zip(self._tables, given, strict=True)]
        order = np.argsort(np.concatenate(list(map(_places, of_sources))), kind="stable")
        samples, sources, records = samples[order], sources[order], np.concatenate(of_sources)[order]
        rows = np.arange(len(samples))
        if self._packing and len(samples):
            tokens = aligned_tokens(records["tokens"], self._align)
            rows = join(tokens, records["patches"], self._seq_len_tokens, self._max_row_patches)
        num_rows = int(rows.max(initial=-1)) + 1
        by_row = np.argsort(rows, kind="stable")
        return _Block(
            sources[by_row].astype(np.int32),
            samples[by_row],
            np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=num_rows)))),
            # added one after the other, so that all ranks find the same sum
            np.bincount(rows, records["cost"].astype(np.float64), num_rows),
        )

    def _exhausted(self, num_blocks: int) -> DataError:
        rows = self._rows_before[num_blocks]
        tokens = sum(self._borders.at(num_blocks))
        return DataError(
            f"max_epochs ends the data after {rows} rows ({tokens} tokens)", "a row behind these", self._how_to_go_on()
        )

    def _how_to_go_on(self) -> str:
        limits = [f"{source.path} ({source.max_epochs:g})" for source in self._mixture if source.max_epochs is not None]
        return f"raise max_epochs of {', '.join(limits)}, give sources without a limit a weight, or train fewer steps"


def _places(records: np.ndarray) -> np.ndarray:
    """(samples,) where in a block, 0..1, each sample of a source lies: evenly, so that any few rows have its share.

    Example: samples of 2, 4 and 2 tokens have their middles at 1/8, 4/8 and 7/8.
    """
    tokens = records["tokens"]
    ends = np.cumsum(tokens, dtype=np.int64)
    return (ends - tokens / 2) / ends[-1:]


def plan_rows(config: RunConfig, tables: Sequence[np.ndarray], mixture: Sequence[MixtureSource]) -> RowPlan:
    """The plan of a run: sections run (seed) and data are read.

    Raises:
        DataError: a source has no sample that fits a row.
    """
    data = config.data
    return RowPlan(
        tables,
        mixture,
        seq_len_tokens=data.seq_len_tokens,
        packing=data.packing,
        seed=config.run.seed,
        sample_align_tokens=data.sample_align_tokens,
        max_row_patches=data.max_row_patches,
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of a block; row r has the samples from starts[r] to starts[r + 1]."""

    sources: np.ndarray
    samples: np.ndarray
    starts: np.ndarray
    costs: np.ndarray


class _Borders:
    """How many tokens each source has given when a block starts.

    Exact arithmetic: a border that were off by a token on another machine would move every row behind it.
    """

    def __init__(self, mixture: Sequence[MixtureSource], totals: Sequence[int], seq_len_tokens: int):
        self._mixture, self._totals = mixture, totals
        self._limits = [
            None if source.max_epochs is None else int(source.max_epochs * total)
            for source, total in zip(mixture, totals, strict=True)
        ]
        self._weighted = len(mixture) > 1 and mixture[0].weight is not None
        self._block_tokens = BLOCK_ROWS * seq_len_tokens
        if self._weighted:
            knots = sorted({0, *(tokens for source in mixture for tokens, _ in source.weight)})
            ramps = [(after - before) // seq_len_tokens for before, after in pairwise(knots)]
            rows = max(LEAST_BLOCK_ROWS, 4 * isqrt(min(ramps))) if ramps else BLOCK_ROWS
            self._block_tokens = min(self._block_tokens, rows * seq_len_tokens)
        self.tokens_per_epoch = sum(totals)
        self.blocks_per_epoch = -(-self.tokens_per_epoch // self._block_tokens)
        self._known: list[tuple[int, ...]] = [(0,) * len(mixture)]

    def at(self, block: int) -> tuple[int, ...] | None:
        """Tokens given by each source before this block; None where the limits have ended the data before its start."""
        while len(self._known) <= block:
            given = self._given(len(self._known) - 1)
            if not any(given):
                return None
            self._known.append(tuple(map(sum, zip(self._known[-1], given, strict=True))))
        return self._known[block]

    def _given(self, block: int) -> list[int]:
        """Tokens that each source gives to a block; what a source lacks is shared out among the others."""
        wanted = self._wanted(block)
        former = self._known[block]
        left = [
            sum(wanted) if limit is None else limit - before for limit, before in zip(self._limits, former, strict=True)
        ]
        given = [0] * len(wanted)
        missing = sum(wanted)
        while missing:
            able = [source for source in range(len(wanted)) if wanted[source] and given[source] < left[source]]
            of_all = sum(wanted[source] for source in able)
            more = {source: min(missing * wanted[source] // of_all, left[source] - given[source]) for source in able}
            if not any(more.values()):
                break
            for source, tokens in more.items():
                given[source] += tokens
            missing -= sum(more.values())
        return given

    def _wanted(self, block: int) -> list[int]:
        """Tokens of a block by the weights alone. Without any, they add up to exactly an epoch."""
        if not self._weighted:
            count = self.blocks_per_epoch
            return [(block + 1) * total // count - block * total // count for total in self._totals]
        start, end = block * self._block_tokens, (block + 1) * self._block_tokens
        weights = [source.weight_between(start, end) for source in self._mixture]
        return [int(self._block_tokens * weight / sum(weights)) for weight in weights]
