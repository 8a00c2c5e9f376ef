"""The shipped grids: for each published size and number of GPUs, how the run is cut, and what is recomputed for it.

How they were chosen, for nodes of 8 H100 with 80 GB and rows of 8,192 tokens: by the planner's model of time among the
legal grids that hold less than about 68 GB (2026-11), of nearly equal ones the plainer, and by these rules:

- The decoder is not recomputed: that costs a third of its time. Only 235B-A22B on 128 GPUs has no other way. The tower
  is, where memory is short or there are stages: it is small, and images fill a part of most rows.
- What talks in every layer stays inside a node: tensor x context is at most 8, and so is expert, although fewer stages
  would do with experts dealt to several nodes. So 235B-A22B takes pipeline 8 x tensor 4 x context 2 x expert 8.
- Stages are few, and the first holds fewer layers, for it has the tower as well; the last has the output layer. With
  the tower recomputed a row in flight costs the first stage one tower width a layer, which is what makes stages cheap.
- A step has 512 rows, of alignment and SFT 256, whatever the number of GPUs. So there are at most 256 replicas, and
  from 512 GPUs on more ranks share a row than memory asks for. Such runs are faster, not more efficient: with more
  rows a step (`training.global_batch_rows`) the GPUs would be used better, but that is another training.

For comparison, Megatron-Bridge's H100 recipes, without a published result, for rows of 4,096 tokens: 30B-A3B on 16 GPUs
as pipeline 2 in 12 chunks x expert 8, 235B-A22B on 256 as tensor 2 x pipeline 8 in 4 chunks x expert 32.

tests/recipes holds every grid, in all four stages, to the rules of config/grid.py and to 72 GB on the worst rank by
config/memory.py's estimate. None was run on H100 yet.
"""

from dataclasses import asdict, dataclass

from megatron_medx.config.run import ParallelSection, RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The fields of the `parallel` section without the number of ranks, and of `training` what belongs to them."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    first_stage_layers: int | None = None
    last_stage_layers: int | None = None
    context: int = 1
    expert: int = 1
    recompute: str = "none"
    recompute_vision: str = "none"


GRIDS: dict[str, dict[tuple[int, ...], Grid]] = {
    "2b": {
        (8, 16, 32, 64, 128, 256): Grid(),
        (512,): Grid(context=2),
        (1024,): Grid(tensor=2, context=2),
    },
    "4b": {
        (8, 16, 32, 64, 128, 256, 512): Grid(tensor=2),
        (1024,): Grid(tensor=2, context=2),
    },
    "8b": {
        (8,): Grid(tensor=4),
        (16, 32, 64, 128, 256, 512): Grid(tensor=2, recompute_vision="full"),
        (1024,): Grid(tensor=2, context=2, recompute_vision="full"),
    },
    "32b": {
        (16,): Grid(tensor=8, pipeline=2, first_stage_layers=28, last_stage_layers=36, recompute_vision="full"),
        (32, 64, 128, 256): Grid(
            tensor=4, pipeline=4, first_stage_layers=12, last_stage_layers=16, recompute_vision="full"
        ),
        (512, 1024): Grid(
            tensor=4, pipeline=4, virtual_pipeline=2, first_stage_layers=12, last_stage_layers=16,
            recompute_vision="full",
        ),
    },
    "30b_a3b": {
        (16,): Grid(
            tensor=2, pipeline=2, context=2, expert=8, first_stage_layers=17, last_stage_layers=31,
            recompute_vision="full",
        ),
        (32,): Grid(tensor=2, context=2, expert=8, recompute_vision="full"),
        (64, 128, 256, 512): Grid(tensor=2, expert=8, recompute_vision="full"),
        (1024,): Grid(
            tensor=2, pipeline=2, virtual_pipeline=2, context=2, expert=8, first_stage_layers=18, last_stage_layers=30,
            recompute_vision="full",
        ),
    },
    "235b_a22b": {
        (128,): Grid(
            tensor=2, pipeline=8, expert=8, first_stage_layers=7, last_stage_layers=9, recompute="full",
            recompute_vision="full",
        ),
        (256, 512, 1024): Grid(
            tensor=4, pipeline=8, context=2, expert=8, first_stage_layers=4, last_stage_layers=12,
            recompute_vision="full",
        ),
    },
}  # fmt: skip
"""Size -> numbers of GPUs -> the grid of all of them; data parallelism takes what the axes leave."""


def shipped_grids(size: str) -> dict[int, Grid]:
    """Return the grid of each number of GPUs that one is shipped for, fewest first; empty for a size without any."""
    return {gpus: grid for numbers, grid in GRIDS.get(size, {}).items() for gpus in numbers}


def put_on_grid(config: RunConfig, gpus: int, grid: Grid) -> None:
    """Set the `parallel` section for so many ranks, and what `training` recomputes, in place."""
    axes = asdict(grid)
    config.training.recompute = axes.pop("recompute")
    config.training.recompute_vision = axes.pop("recompute_vision")
    config.parallel = ParallelSection(world_size=gpus, **axes)
