"""The legal grid that is nearest to an illegal one, as overrides to paste.

All ways to cut the same number of ranks are judged by the rules of `grid.py`. Near is a small sum of
|log2 (new / asked)| over the axes but data, which takes what the others leave, and over the layers of first and last
stage; a stage that gets or loses a number of its own counts 1, like an axis halved. Of grids equally near, the one with
the fewest such numbers comes first, then the one that shares a model among most ranks.

The search is short because rules only add up: a grid is legal only if each of its axes is legal alone, and with virtual
stages or expert parallelism only if it is legal without.
"""

from dataclasses import replace
from itertools import product
from math import log2

from megatron_medx.config.grid import fitting_split, is_legal
from megatron_medx.config.run import ParallelSection, RunConfig

AXES = ("tensor", "pipeline", "context")
SPLIT = ("first_stage_layers", "last_stage_layers")


def nearest_grid(config: RunConfig) -> str:
    """Return words that name the nearest legal grid for this model and `parallel.world_size`.

    Where no grid of so many ranks divides the rows of a step, the next number of rows for which one does is named with
    its grid: one always exists, since plain data parallelism is legal for any multiple of the ranks. Rows are added,
    never taken away: with fewer, a warm-up counted in tokens might not end.
    """
    grids = _plain_grids(config)
    if grid := _nearest(config, grids):
        return f"nearest legal grid: {_overrides(config, grid)}"
    world, rows = config.parallel.world_size, config.training.global_batch_rows
    for more_rows in sorted({-(-rows // replicas) * replicas for replicas in _divisors(world)}):
        training = replace(config.training, global_batch_rows=more_rows)
        if grid := _nearest(replace(config, training=training), grids):
            change = f"training.global_batch_rows={more_rows} {_overrides(config, grid)}"
            return f"no grid of {world} ranks is legal with {rows} rows a step; smallest change: {change}"
    raise AssertionError("plain data parallelism breaks a rule of the grid")


def _nearest(config: RunConfig, grids: list[ParallelSection]) -> ParallelSection | None:
    """The nearest legal grid that is one of `grids` or adds virtual stages and experts to it; None without any."""
    asked = config.parallel
    chunks = sorted(range(1, 2 * asked.virtual_pipeline), key=lambda count: _ratio(count, asked.virtual_pipeline))
    experts = sorted(_divisors(max(1, config.model.num_experts)), key=lambda count: _ratio(count, asked.expert))
    best, least = None, float("inf")
    for grid in grids:
        if _distance(grid, asked) >= least:
            break  # grids are sorted by distance
        if not is_legal(replace(config, parallel=grid)):
            continue
        for virtual, expert in product(chunks, experts):
            candidate = replace(grid, virtual_pipeline=virtual, expert=expert)
            distance = _distance(grid, asked)
            distance += _ratio(virtual, asked.virtual_pipeline) + _ratio(expert, asked.expert)
            if distance < least and is_legal(replace(config, parallel=candidate)):
                best, least = candidate, distance
    return best


def _plain_grids(config: RunConfig) -> list[ParallelSection]:
    """Grids of as many ranks without virtual stages and experts whose axes are legal alone, the nearest first.

    Layers are split as asked, evenly, and as the nearest number for one stage makes either legal: if some split of the
    layers over so many stages is legal, then one of these is.
    """
    asked = config.parallel
    world = asked.world_size
    tensors = [{"tensor": size} for size in _divisors(world) if _legal_alone(config, size, tensor=size)]
    contexts = [{"context": size} for size in _divisors(world) if _legal_alone(config, size, context=size)]
    stages = [
        {"pipeline": size} | split
        for size in _divisors(world)
        for split in _splits(config, size)
        if _legal_alone(config, size, pipeline=size, **split)
    ]
    grids = [
        ParallelSection(world_size=world, **tensor, **stage, **context)
        for tensor, stage, context in product(tensors, stages, contexts)
        if world % (tensor["tensor"] * stage["pipeline"] * context["context"]) == 0
    ]
    return sorted(
        grids, key=lambda grid: (_distance(grid, asked), _numbers(grid), grid.data, grid.pipeline, grid.context)
    )


def _legal_alone(config: RunConfig, world_size: int, **axes: int) -> bool:
    """Whether a grid of these axes and no others is legal."""
    return is_legal(replace(config, parallel=ParallelSection(world_size=world_size, **axes)))


def _splits(config: RunConfig, pipeline: int) -> list[dict[str, int]]:
    """Splits of the layers over so many stages to try."""
    asked = config.parallel
    splits = [{}]
    if given := {key: value for key in SPLIT if (value := getattr(asked, key)) is not None}:
        splits.append(given)
    for split, virtual in product(list(splits), {1, asked.virtual_pipeline}):
        grid = ParallelSection(pipeline=pipeline, virtual_pipeline=virtual, **split)
        if pipeline > 1 and (fitting := fitting_split(replace(config, parallel=grid))):
            changed = split | {fitting[0].removeprefix("parallel."): fitting[1]}
            splits += [changed] if changed not in splits else []
    return splits


def _distance(grid: ParallelSection, asked: ParallelSection) -> float:
    distance = sum(_ratio(getattr(grid, axis), getattr(asked, axis)) for axis in AXES)
    for layers, wanted in ((getattr(grid, key), getattr(asked, key)) for key in SPLIT):
        if layers != wanted:
            distance += 1 if layers is None or wanted is None else _ratio(layers, wanted)
    return distance


def _numbers(grid: ParallelSection) -> int:
    return sum(getattr(grid, key) is not None for key in SPLIT)


def _ratio(size: int, asked: int) -> float:
    return abs(log2(size / asked))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _overrides(config: RunConfig, grid: ParallelSection) -> str:
    default, asked = ParallelSection(), config.parallel
    optional = ("virtual_pipeline", *SPLIT, "expert")
    named = [key for key in optional if {getattr(grid, key), getattr(asked, key)} != {getattr(default, key)}]
    values = {key: getattr(grid, key) for key in (*AXES, *named)}
    return " ".join(f"parallel.{key}={'none' if value is None else value}" for key, value in values.items())
