"""How many ranks a job starts on the tasks that it got."""

from dataclasses import replace

from megatron_medx.config.grid import is_legal
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ParallelismError


def with_ranks(config: RunConfig, ranks: int) -> RunConfig:
    """The same run on another number of ranks."""
    return replace(config, parallel=replace(config.parallel, world_size=ranks))


def choose_ranks(config: RunConfig, former: RunConfig | None, tasks: int, tasks_per_node: int) -> int:
    """Every task; of an elastic run that had another number, the most ranks that keep grid and global batch.

    Args:
        config: of the run, checked but for its number of ranks.
        former: what the run in the folder has been; None for a new one, which starts on all tasks.
        tasks: that Slurm starts, one a GPU.
        tasks_per_node: of them.

    Raises:
        ParallelismError: the number differs and the run is not elastic, or no smaller one is legal.
    """
    if former is None or former.parallel.world_size == tasks:
        return tasks
    before = former.parallel.world_size
    if not config.training.elastic:
        nodes = -(-before // tasks_per_node)
        fits = f"submit with --nodes={nodes}" if before % tasks_per_node == 0 else f"submit with {before} tasks"
        raise ParallelismError(
            f"{tasks} tasks of {tasks_per_node} a node, the run has {before} ranks",
            "as many: training.elastic is false",
            f"{fits}, or add training.elastic=true to go on with another number and the same global batch",
        )
    for ranks in range(tasks, 0, -1):
        if is_legal(with_ranks(config, ranks)):
            return ranks
    parallel = config.parallel
    raise ParallelismError(
        f"{tasks} tasks; tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context}",
        f"at least {parallel.tensor * parallel.pipeline * parallel.context} tasks: a whole model",
        "submit with more nodes, or lower parallel.tensor, parallel.pipeline or parallel.context",
    )
