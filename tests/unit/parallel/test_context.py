"""How rows are cut over context-parallel ranks, against Megatron's own slicing of rotary angles."""

import itertools

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _get_thd_freqs_on_this_cp_rank

from megatron_medx.parallel.context import place_in_gathered_row, tokens_of_rank

ROWS = {2: (0, 8, 12, 32), 3: (0, 6, 30, 36), 4: (0, 8, 40)}
"""Ranks -> borders of a row that they can share."""


def test_the_docstrings_examples():
    assert tokens_of_rank(torch.tensor([0, 8, 12]), 2, 0).tolist() == [0, 1, 6, 7, 8, 11]
    assert tokens_of_rank(torch.tensor([0, 8, 12]), 2, 1).tolist() == [2, 3, 4, 5, 9, 10]
    assert place_in_gathered_row(torch.tensor([0, 8]), 2).tolist() == [0, 1, 4, 5, 6, 7, 2, 3]


@pytest.mark.parametrize("num_ranks", ROWS)
def test_every_token_is_held_once_and_found_again(num_ranks):
    borders = torch.tensor(ROWS[num_ranks])
    gathered = torch.cat([tokens_of_rank(borders, num_ranks, rank) for rank in range(num_ranks)])
    assert sorted(gathered.tolist()) == list(range(borders[-1]))
    assert gathered[place_in_gathered_row(borders, num_ranks)].tolist() == list(range(borders[-1]))


@pytest.mark.parametrize("num_ranks", ROWS)
def test_megatron_turns_the_same_tokens(num_ranks):
    """Megatron slices the angles of the whole row by itself: tokens and angles must meet."""
    borders = ROWS[num_ranks]
    positions = torch.arange(borders[-1])
    for rank in range(num_ranks):
        slices = [
            _get_thd_freqs_on_this_cp_rank(rank, num_ranks, torch.empty((end - start) // num_ranks), positions, start)
            for start, end in itertools.pairwise(borders)
        ]
        assert torch.cat(slices).tolist() == tokens_of_rank(torch.tensor(borders), num_ranks, rank).tolist()


@pytest.mark.parametrize("num_ranks", ROWS)
def test_causal_work_is_equal(num_ranks):
    """Keys seen by a rank's queries, summed: equal but for the pieces' own triangles."""
    borders = torch.tensor([0, 240 * num_ranks])
    seen = [int((tokens_of_rank(borders, num_ranks, rank) + 1).sum()) for rank in range(num_ranks)]
    assert max(seen) == min(seen)


def test_one_rank_holds_the_row_in_order_whatever_its_segments():
    assert tokens_of_rank(torch.tensor([0, 3, 7]), 1, 0).tolist() == list(range(7))


def test_a_segment_that_cannot_be_cut_is_an_error():
    with pytest.raises(AssertionError, match="6 tokens"):
        tokens_of_rank(torch.tensor([0, 4, 10]), 2, 0)
