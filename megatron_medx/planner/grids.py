"""All legal ways to cut so many GPUs for a model and its rows that are worth a thought, and their words.

Left out: tensor ranks across nodes (their messages stop every layer), pieces of rows below 4,096 tokens for a context
rank, more than 16 stages, more than 6 chunks a stage, `selective` recomputation (it saves nothing where attention is
fused).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import ceil, floor

from megatron_medx.config.grid import is_legal
from megatron_medx.config.run import ParallelSection, RunConfig
from megatron_medx.config.values import value_of
from megatron_medx.recipes import RECIPES, get_recipe

LEAST_CONTEXT_TOKENS, MOST_STAGES, MOST_CHUNKS, MOST_EXPERT_RANKS = 4096, 16, 6, 64

Weights = Sequence[tuple[float, float]]
"""Of first and last stage, several to try."""

WeightsOf = Callable[[int, int], Weights]

AXES = ("tensor", "pipeline", "virtual_pipeline", "first_stage_layers", "last_stage_layers", "context", "expert")


def legal_grids(
    config: RunConfig, gpus_per_node: int = 8, weights_of: WeightsOf | None = None
) -> Iterator[ParallelSection]:
    """Yield the legal grids of `parallel.world_size` GPUs for the run's model, rows and global batch.

    Args:
        config: the run.
        gpus_per_node: most tensor ranks.
        weights_of: of (tensor, context) what first and last stage do beside their layers, in layers' worth of time, by
            which layers are split; without it they are split evenly and nearly so.
    """
    world = config.parallel.world_size
    tensors = [size for size in _divisors(world, gpus_per_node) if _alone(config, size, tensor=size)]
    most_context = max(1, config.data.seq_len_tokens // LEAST_CONTEXT_TOKENS)
    contexts = [size for size in _divisors(world, most_context) if _alone(config, size, context=size)]
    for tensor, context in product(tensors, contexts):
        weights = weights_of(tensor, context) if weights_of else [(0.0, 0.0), (1.0, 1.0), (4.0, 1.0)]
        for pipeline in _divisors(world // (tensor * context), MOST_STAGES):
            if world % (tensor * context * pipeline):
                continue
            for stages in _stages(config, pipeline, weights):
                grid = ParallelSection(world_size=world, tensor=tensor, context=context, **stages)
                if is_legal(replace(config, parallel=grid)):
                    yield from _with_experts(config, grid)


def recomputations(config: RunConfig) -> tuple[tuple[str, str], ...]:
    """Return (training.recompute, training.recompute_vision) to try, the least memory first."""
    if "vision" in config.training.freeze:
        return tuple((decoder, config.training.recompute_vision) for decoder in ("full", "none"))
    return ("full", "full"), ("none", "full"), ("none", "none")


def with_grid(config: RunConfig, grid: ParallelSection, recompute: tuple[str, str] | None = None) -> RunConfig:
    """Return the run on another grid, and with other recomputation."""
    training = config.training
    if recompute is not None:
        training = replace(training, recompute=recompute[0], recompute_vision=recompute[1])
    return replace(config, parallel=grid, training=training)


def overrides(config: RunConfig, asked: RunConfig) -> str:
    """Return what turns the run that was asked for into this one, as overrides to paste, or `no change`.

    They also hold where they are pasted behind the recipe's name alone: once a field of `parallel` is stated, a command
    starts from the recipe's own grid, whatever the number of GPUs.
    """
    bases = [asked, *([get_recipe(asked.run.recipe)] if asked.run.recipe in RECIPES else [])]
    changed = []
    for key in (*(f"parallel.{axis}" for axis in AXES), "training.recompute", "training.recompute_vision"):
        value = value_of(config, key)
        if any(value_of(base, key) != value for base in bases):
            changed.append(f"{key}={'none' if value is None else value}")
    return " ".join(changed) if config != asked else "no change"


def _stages(config: RunConfig, pipeline: int, weights: Weights) -> Iterator[dict[str, int]]:
    """Stages, chunks and splits of the layers over them, each once."""
    layers = config.model.num_layers
    for virtual in range(1, MOST_CHUNKS + 1 if pipeline > 1 else 2):
        splits = [{}] if layers % (pipeline * virtual) == 0 else []
        for first_weight, last_weight in weights if pipeline > 1 else ():
            split = balanced_split(layers, pipeline, virtual, first_weight, last_weight)
            splits += [split] if split is not None and split not in splits else []
        for split in splits:
            yield {"pipeline": pipeline, "virtual_pipeline": virtual} | split


def balanced_split(
    layers: int, pipeline: int, virtual: int, first_weight: float, last_weight: float
) -> dict[str, int] | None:
    """Return the layers of first and last stage with which all stages work about equally long; {} for equal stages.

    Weights are what the two do beside their layers, in layers. The stages between get b layers, the least number with
    which all of it finds room, the first b - first_weight, the last what is left: numbers of `virtual` equal chunks.
    None where no stage would be left something.

    Example (94 layers, 8 stages, weights 7 and 2): (94 + 9) / 8 = 12.9, so b = 13; 13 - 7 = 6 and 94 - 78 - 6 = 10.
    """
    if layers % virtual:
        return None
    between = ceil((layers + first_weight + last_weight) / pipeline / virtual) * virtual
    wanted = (layers - first_weight + last_weight) / 2 if pipeline == 2 else between - first_weight
    first = max(1, floor(wanted / virtual)) * virtual
    last = layers - (pipeline - 2) * between - first
    if last < virtual:
        return None
    if first == last and (pipeline == 2 or first == between):
        return {}
    return {"first_stage_layers": first, "last_stage_layers": last}


def _alone(config: RunConfig, size: int, **axis: int) -> bool:
    return is_legal(replace(config, parallel=ParallelSection(world_size=size, **axis)))


def _with_experts(config: RunConfig, grid: ParallelSection) -> Iterator[ParallelSection]:
    """The grid with every number of ranks that experts can be dealt to."""
    yield grid
    ranks = grid.tensor * grid.context * grid.data
    for expert in _divisors(max(1, config.model.num_experts), MOST_EXPERT_RANKS)[1:]:
        if ranks % expert == 0:
            yield replace(grid, expert=expert)


def _divisors(number: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0]
