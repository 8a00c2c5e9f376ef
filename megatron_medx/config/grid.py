"""The grid of ranks: what each pipeline stage holds, and every rule that makes a grid legal for a model and its rows.

world_size = tensor x pipeline x context x data. A row of S tokens is cut into S / context for each context rank (every
sample of it into 2 x context pieces, of which a rank takes two) and S / (context x tensor) for each tensor rank.
Decoder layers are cut into stages, and with virtual stages each stage into as many chunks. Experts are dealt whole to
`expert` of the tensor x context x data ranks of a stage.

Rules are pure functions of the configuration. `checks.py` applies them to the grid that was asked for,
`nearest_grid.py` to all others. A rule keeps quiet about what another one reports.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

from megatron_medx.config.precision import PRECISION_GRID_RULES
from megatron_medx.config.problems import Problem
from megatron_medx.config.run import RunConfig
from megatron_medx.config.values import value_of

Rule = Callable[[RunConfig], Iterator[Problem]]

UNEVEN = ("parallel.first_stage_layers", "parallel.last_stage_layers")
"""Stages that may hold another number of layers than the rest."""

DIVIDES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("model.num_heads", ("parallel.tensor",), "every tensor rank holds whole heads"),
    ("model.num_kv_heads", ("parallel.tensor",), "key/value heads are not copied over ranks in this version"),
    ("model.vocab_size", ("parallel.tensor",), "the embedding has no padded rows"),
    ("data.seq_len_tokens", ("parallel.tensor", "parallel.context"), "every rank holds equally many tokens of a row"),
    ("parallel.world_size", ("parallel.tensor", "parallel.pipeline", "parallel.context"), "the rest is data"),
)
"""(dividend, divisors that are multiplied, why)."""


def stage_layers(config: RunConfig) -> list[int]:
    """Return the decoder layers of each pipeline stage of a legal grid, first to last.

    Example: 10 layers, pipeline 4, first_stage_layers 1: [1, 3, 3, 3].
    """
    parallel, total = config.parallel, config.model.num_layers
    given = _given_layers(config)
    others = parallel.pipeline - len(given)
    layers = [(total - sum(given.values())) // others if others else 0] * parallel.pipeline
    if parallel.first_stage_layers is not None:
        layers[0] = parallel.first_stage_layers
    if parallel.last_stage_layers is not None:
        layers[-1] = parallel.last_stage_layers
    return layers


def is_legal(config: RunConfig) -> bool:
    """Return whether no rule of the grid is broken."""
    return all(next(rule(config), None) is None for _, rule in GRID_RULES)


def divides(
    config: RunConfig, dividend: str, divisors: tuple[str, ...], why: str, of_the_grid: bool = False
) -> Iterator[Problem]:
    """Yield a problem when the product of `divisors` does not divide `dividend` (both are keys)."""
    value, factors = value_of(config, dividend), [value_of(config, key) for key in divisors]
    product = math.prod(factors)
    if value % product:
        named = " x ".join(f"{key} {factor}" for key, factor in zip(divisors, factors, strict=True))
        total = f" = {product}" if len(factors) > 1 else ""
        do = f"change {' or '.join(divisors)}"
        multiple = -(-value // product) * product
        if dividend == "parallel.world_size":
            do = f"start {multiple} ranks with --nproc {multiple}, or {do}"
        elif dividend == "data.seq_len_tokens":
            do = f"set {dividend}={multiple}, or {do}"
        yield Problem(f"{dividend} {value}, {named}{total}", f"{dividend} a multiple: {why}", do, of_the_grid)


def _mlp(config: RunConfig) -> Iterator[Problem]:
    if not config.model.is_moe:  # experts are never sliced
        why = "every tensor rank holds an equal slice of the MLP"
        yield from divides(config, "model.ffn_hidden_size", ("parallel.tensor",), why, of_the_grid=True)


def _alignment(config: RunConfig) -> Iterator[Problem]:
    align, pieces = config.data.sample_align_tokens, 2 * config.parallel.context
    if config.parallel.context > 1 and align % pieces:
        fitting, row = math.lcm(align, pieces), config.data.seq_len_tokens
        longer = f" data.seq_len_tokens={_multiple(row, fitting)}" if row % fitting else ""
        yield Problem(
            f"data.sample_align_tokens {align}, parallel.context {config.parallel.context}",
            f"a multiple of {pieces} = 2 x parallel.context: every sample is cut into {pieces} equal pieces, "
            "of which a rank takes an early and a late one",
            f"set data.sample_align_tokens={fitting}{longer}, or lower parallel.context",
            True,
        )


def _rows(config: RunConfig) -> Iterator[Problem]:
    parallel, rows = config.parallel, config.training.global_batch_rows
    if _has_whole_replicas(config) and rows % parallel.data:
        yield Problem(
            f"training.global_batch_rows {rows}, data-parallel replicas {parallel.data} "
            f"(world {parallel.world_size} / tensor {parallel.tensor} / pipeline {parallel.pipeline} "
            f"/ context {parallel.context})",
            "as many rows for every replica",
            f"set training.global_batch_rows={_multiple(rows, parallel.data)}, or change the grid",
            True,
        )


def _layers(config: RunConfig) -> Iterator[Problem]:
    if needed := _fault_of_split(config):
        parallel, given = config.parallel, _given_layers(config)
        named = "".join(f", {key} {value}" for key, value in given.items())
        do = "lower parallel.pipeline" if parallel.pipeline > 1 else "raise parallel.pipeline"
        if parallel.pipeline == 1:
            do = f"set {' '.join(f'{key}=none' for key in given)}, or {do}"
        elif fitting := fitting_split(config):
            do = f"set {fitting[0]}={fitting[1]}, or {do}"
        found = f"model.num_layers {config.model.num_layers}, parallel.pipeline {parallel.pipeline}{named}"
        yield Problem(found, needed, do, True)


def _fault_of_split(config: RunConfig) -> str:
    """What the numbers of layers of the stages would have to be; empty when they are legal."""
    total, pipeline, given = config.model.num_layers, config.parallel.pipeline, _given_layers(config)
    stages, layers = pipeline - len(given), total - sum(given.values())
    others = " other" if given else ""
    if pipeline == 1:
        return f"no number for a stage: the only one holds all {total} layers" if given else ""
    if not stages:
        return f"a sum of {total} layers on the two stages" if layers else ""
    if layers < stages:
        return f"at least {stages} layers for the {stages}{others} stages, not {layers}: no stage is without layers"
    return f"equally many of {layers} layers on the {stages}{others} stages" if layers % stages else ""


def fitting_split(config: RunConfig) -> tuple[str, int] | None:
    """Return (key, layers): one number for a stage that makes the split legal, the nearest to what was asked.

    It is the first stage's unless only the last has a number. None when no number does.
    """
    parallel, given = config.parallel, _given_layers(config)
    key = next(iter(given), UNEVEN[0])
    kept = [layers for other, layers in given.items() if other != key]
    stages, total = parallel.pipeline - 1 - len(kept), config.model.num_layers - sum(kept)
    virtual = parallel.virtual_pipeline
    fits = [total - each * stages for each in range(virtual, total, virtual)] if stages else [total]
    levels = len(config.model.vision.deepstack_layers) if key == UNEVEN[0] else 1
    fits = [layers for layers in fits if layers >= max(1, levels) * virtual and layers % virtual == 0]
    wanted = given.get(key, config.model.num_layers // parallel.pipeline)
    return (key, min(fits, key=lambda layers: (abs(layers - wanted), layers))) if fits else None


def _given_layers(config: RunConfig) -> dict[str, int]:
    return {key: value for key in UNEVEN if (value := value_of(config, key)) is not None}


def _chunks(config: RunConfig) -> Iterator[Problem]:
    parallel = config.parallel
    virtual = parallel.virtual_pipeline
    if virtual > 1 and parallel.pipeline == 1:
        yield Problem(
            f"parallel.virtual_pipeline {virtual}, parallel.pipeline 1",
            "parallel.pipeline at least 2: virtual stages are chunks of the stages of a pipeline",
            "set parallel.virtual_pipeline=1, or raise parallel.pipeline",
            True,
        )
    elif not _fault_of_split(config) and any(layers % virtual for layers in stage_layers(config)):
        common = math.gcd(*stage_layers(config))
        fitting = max(chunks for chunks in range(1, virtual) if common % chunks == 0)
        yield Problem(
            f"stages of {' + '.join(map(str, stage_layers(config)))} layers, parallel.virtual_pipeline {virtual}",
            f"stages that divide into {virtual} equal chunks, none without layers",
            f"set parallel.virtual_pipeline={fitting}, or change parallel.pipeline",
            True,
        )


def _rows_of_chunks(config: RunConfig) -> Iterator[Problem]:
    parallel, rows = config.parallel, config.training.global_batch_rows
    if parallel.virtual_pipeline == 1 or not _has_whole_replicas(config) or rows % parallel.data:
        return
    if rows // parallel.data % parallel.pipeline:
        yield Problem(
            f"training.global_batch_rows {rows} / data {parallel.data} = {rows // parallel.data} rows for a replica, "
            f"parallel.virtual_pipeline {parallel.virtual_pipeline}",
            f"a multiple of parallel.pipeline {parallel.pipeline}: the interleaved schedule takes rows in groups of it",
            f"set training.global_batch_rows={_multiple(rows, parallel.data * parallel.pipeline)}, "
            "or parallel.virtual_pipeline=1",
            True,
        )


def _deepstack(config: RunConfig) -> Iterator[Problem]:
    levels, virtual = len(config.model.vision.deepstack_layers), config.parallel.virtual_pipeline
    if levels > config.model.num_layers or _fault_of_split(config) or next(_chunks(config), None):
        return
    of_stage = stage_layers(config)[0]
    if of_stage // virtual < levels:
        chunk = f" in each of {virtual} chunks" if virtual > 1 else ""
        yield Problem(
            f"{of_stage // virtual} decoder layers{chunk} on the first pipeline stage (of {config.model.num_layers}; "
            f"parallel.pipeline {config.parallel.pipeline}), {levels} model.vision.deepstack_layers",
            f"at least {levels}: DeepStack feeds decoder layers 0 to {levels - 1}, beside the tower",
            "lower parallel.pipeline or parallel.virtual_pipeline, or raise parallel.first_stage_layers",
            True,
        )


def _experts(config: RunConfig) -> Iterator[Problem]:
    parallel, experts = config.parallel, config.model.num_experts
    if parallel.expert == 1:
        return
    if not config.model.is_moe:
        yield Problem(
            f"parallel.expert {parallel.expert} on a dense model",
            "parallel.expert=1: there are no experts to share",
            "set parallel.expert=1",
            True,
        )
        return
    if experts % parallel.expert:
        yield Problem(
            f"model.num_experts {experts}, parallel.expert {parallel.expert}",
            "equally many experts on every rank: they are dealt whole",
            f"set parallel.expert to a divisor of {experts}",
            True,
        )
    ranks = parallel.world_size // parallel.pipeline
    if _has_whole_replicas(config) and ranks % parallel.expert:
        yield Problem(
            f"parallel.expert {parallel.expert}, {ranks} ranks of a stage (tensor {parallel.tensor} x "
            f"context {parallel.context} x data {parallel.data})",
            "a divisor of the ranks of a stage: expert parallelism takes its ranks from them",
            f"set parallel.expert to a divisor of {ranks}",
            True,
        )


def _has_whole_replicas(config: RunConfig) -> bool:
    parallel = config.parallel
    return parallel.world_size % (parallel.tensor * parallel.pipeline * parallel.context) == 0


def _multiple(value: int, factor: int) -> int:
    """`value` rounded up to a multiple of `factor`."""
    return -(-value // factor) * factor


LAYERS = ("model.num_layers", "parallel.")
GRID_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    *(
        ((dividend, *divisors), partial(divides, dividend=dividend, divisors=divisors, why=why, of_the_grid=True))
        for dividend, divisors, why in DIVIDES
    ),
    (("model.ffn_hidden_size", "model.num_experts", "parallel.tensor"), _mlp),
    (("data.sample_align_tokens", "data.seq_len_tokens", "parallel.context"), _alignment),
    (("training.global_batch_rows", "parallel."), _rows),
    (LAYERS, _layers),
    (LAYERS, _chunks),
    (("training.global_batch_rows", "parallel."), _rows_of_chunks),
    (("model.vision.deepstack_layers", *LAYERS), _deepstack),
    (("model.num_experts", "parallel."), _experts),
    *PRECISION_GRID_RULES,
)
"""(prefixes of the keys that a rule reads, the rule); every problem of theirs is of the grid."""
