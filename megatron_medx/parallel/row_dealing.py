"""Which data-parallel rank takes which rows of a step, so that no rank waits for another.

In: an estimated cost for each row of the step. Out: rows for each rank, equally many. Pure arithmetic: every rank works
out the whole deal for itself, so nothing is sent and all agree. Which rows form the step is the plan's affair and does
not depend on the number of ranks.
"""

from collections.abc import Sequence
from heapq import heappop, heappush


def deal_rows(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Deal rows to ranks, the costliest first, each to the rank with the least cost so far that still has room.

    The result is a function of the arguments alone: equal costs go in the order of their rows, and of equally loaded
    ranks the lowest takes the row. How even it is depends on the rows per rank (`python -m benchmarks.row_balance`).

    Args:
        costs: of each row of a step, >= 0, in any unit (`RowDataset.cost`); a multiple of `num_ranks` of them.
        num_ranks: data-parallel ranks, at least 1.

    Returns:
        Rows of each rank, ascending, len(costs) / num_ranks to each. Every row occurs once.

    Example (costs 9, 1, 5, 4, 2, 2 on two ranks; rows are dealt in the order 0, 2, 3, 4, 5, 1):

        rank 0    [0, 1, 4]    cost 9 + 1 + 2
        rank 1    [2, 3, 5]    cost 5 + 4 + 2

    Source: longest processing time first (R. L. Graham, 1969) with a limit to the number; an equal number is what
    Megatron's schedules ask for.
    """
    rows_per_rank, left_over = divmod(len(costs), num_ranks)
    assert not left_over, f"{len(costs)} rows on {num_ranks} ranks: the checks of the grid refuse this"
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads: list[tuple[float, int]] = [(0, rank) for rank in range(num_ranks)]  # of ranks with room, a heap
    for row in sorted(range(len(costs)), key=lambda row: -costs[row]):
        load, rank = heappop(loads)
        shares[rank].append(row)
        if len(shares[rank]) < rows_per_rank:
            heappush(loads, (load + costs[row], rank))
    return [sorted(share) for share in shares]
