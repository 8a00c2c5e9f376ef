"""Context parallelism: how a packed row is cut over ranks, so that causal attention costs each of them the same.

Every segment (sample) of a row is cut into 2c equal pieces for c ranks; rank r holds pieces r and 2c - 1 - r. An early
piece attends to little and a late one to much, and each rank has one of both. This is the layout that Transformer
Engine's attention and Megatron's rotary embedding expect of packed rows.
"""

import itertools

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


def tokens_of_rank(cu_seqlens: Tensor, num_ranks: int, rank: int) -> Tensor:
    """Which tokens of a row a context-parallel rank holds, in its own order.

    Example, borders 0 8 12, two ranks: rank 0 holds 0 1 6 7 | 8 11, rank 1 holds 2 3 4 5 | 9 10.

    Args:
        cu_seqlens: (segments + 1,) borders, 0 first and S last; every segment is a multiple of 2 x num_ranks long
            when there is more than one rank (`data.sample_align_tokens` sees to that).
        num_ranks, rank: place in the context-parallel group.

    Returns:
        (S / num_ranks,) int64 positions in the row, on the device of `cu_seqlens`.
    """
    if num_ranks == 1:
        return torch.arange(int(cu_seqlens[-1]), device=cu_seqlens.device)
    held = []
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        piece, rest = divmod(end - start, 2 * num_ranks)
        assert not rest, f"a segment of {end - start} tokens cannot be cut into 2 x {num_ranks} pieces"
        for index in (rank, 2 * num_ranks - 1 - rank):
            held.append(torch.arange(start + index * piece, start + (index + 1) * piece))
    return torch.cat(held).to(cu_seqlens.device)


def cut_row(x_1S: Tensor, cu_seqlens: Tensor, group: ProcessGroup) -> Tensor:
    """(1, S) values of a row -> (1, S / c) values of this rank's tokens."""
    if group.size() == 1:
        return x_1S
    return x_1S[:, tokens_of_rank(cu_seqlens, group.size(), group.rank()).to(x_1S.device)]


def place_in_gathered_row(cu_seqlens: Tensor, num_ranks: int) -> Tensor:
    """Where each token of a row lies when all ranks' tokens are laid one behind the other.

    Example, borders 0 8, two ranks: gathered is 0 1 6 7 2 3 4 5, so the answer is 0 1 4 5 6 7 2 3.

    Returns:
        (S,) int64, on the device of `cu_seqlens`.
    """
    gathered = torch.cat([tokens_of_rank(cu_seqlens, num_ranks, rank) for rank in range(num_ranks)])
    return gathered.argsort()
