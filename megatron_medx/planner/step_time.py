"""The predicted time of a step: its rows dealt to replicas, played through the pipeline, and what comes once a step.

Comes in: the run, its workload, the ceilings. Goes out: seconds by kind, model FLOP/s, MFU. A step takes as long as its
slowest replica; between steps nothing is counted: data is there, checkpoints are written beside training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron_medx.config.grid import stage_layers
from megatron_medx.config.memory import PRECISIONS
from megatron_medx.config.run import RunConfig
from megatron_medx.parallel.row_dealing import deal_rows
from megatron_medx.planner.hardware import Hardware
from megatron_medx.planner.links import groups, ring_s
from megatron_medx.planner.row_time import Kinds, RowParts, Seconds, row_parts, total
from megatron_medx.planner.timeline import RowSeconds, Timeline, simulate
from megatron_medx.planner.traffic import hop_bytes, step_bytes, trained_parameters
from megatron_medx.planner.workload import Row, Workload

OPTIMIZER_PASSES = 3
"""Times that the bytes of the optimizer states are moved for an update: read, written, and, about as much, gradients
read for their norm, read once more and cleared."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a step takes."""

    step_s: float
    kinds: dict[str, float]
    """Its seconds by kind on the stage that works longest: kinds of rows, then `bubble`, `gradients and weights`,
    `optimizer`, `rest`; their sum is the step's time."""
    timeline: Timeline
    """Of the slowest replica."""
    flops: dict[str, float]
    """Model FLOPs of the step by part, and `total`."""
    tflops_per_gpu: float
    """Model TFLOP/s."""
    mfu: float
    """These over the bf16 peak (the fp32 peak where the run is in fp32), whatever `precision.fp8` is."""
    slowest_replica: float
    """Work of the replica with the costliest rows over the mean of all."""


class Chunk(NamedTuple):
    """Decoder layers of one chunk of a stage, and what else lies on it."""

    layers: int
    fp8_layers: int
    is_first: bool
    is_last: bool


def chunks(config: RunConfig) -> list[list[Chunk]]:
    """Return [stage][chunk] of a legal grid: layers go through all stages' first chunks, then through their second."""
    p, layers = config.parallel, stage_layers(config)
    precision, depth = config.precision, config.model.num_layers
    low, high = precision.bf16_first_layers, depth - precision.bf16_last_layers
    if precision.fp8 == "none":
        low = high = 0
    held: list[list[Chunk]] = [[] for _ in range(p.pipeline)]
    start = 0
    for _ in range(p.virtual_pipeline):
        for stage in range(p.pipeline):
            end = start + layers[stage] // p.virtual_pipeline
            fp8 = max(0, min(end, high) - max(start, low))
            held[stage].append(Chunk(end - start - fp8, fp8, start == 0, end == depth))
            start = end
    return held


def chunk_kinds(parts: RowParts, chunk: Chunk) -> Kinds:
    """Return the seconds by kind of one row in a chunk."""
    pieces = [(parts.layer, chunk.layers), (parts.fp8_layer, chunk.fp8_layers)]
    pieces += [(parts.first, int(chunk.is_first)), (parts.last, int(chunk.is_last))]
    kinds: Kinds = {}
    for piece, count in pieces:
        for kind, seconds in piece.items() if count else ():
            before = kinds.get(kind, Seconds(0.0, 0.0))
            kinds[kind] = Seconds(before.forward + count * seconds.forward, before.backward + count * seconds.backward)
    return kinds


def row_seconds(config: RunConfig, parts: RowParts) -> RowSeconds:
    """Return [stage][chunk] -> seconds of both passes of a row."""
    pieces = [total(piece) for piece in parts]
    table = []
    for stage in chunks(config):
        counts = [(chunk.layers, chunk.fp8_layers, int(chunk.is_first), int(chunk.is_last)) for chunk in stage]
        table.append(
            [
                Seconds(*(sum(n * piece[which] for n, piece in zip(count, pieces, strict=True)) for which in (0, 1)))
                for count in counts
            ]
        )
    return table


def predict(config: RunConfig, workload: Workload, hardware: Hardware) -> Prediction:
    """Return the predicted step of a legal grid."""
    rows, slowest = slowest_rows(config, workload, hardware)
    known: dict[int, RowSeconds] = {}
    for row in rows:
        if id(row) not in known:
            known[id(row)] = row_seconds(config, row_parts(config, row.load, hardware))
    mean = row_parts(config, workload.mean, hardware)
    hop_s = ring_s(hop_bytes(config, workload.mean), 1, groups(config)["pipeline"], hardware)
    timeline = simulate([known[id(row)] for row in rows], hop_s)
    last_row = known[id(rows[-1])]
    exposed = max(exposed_step_s(config, stage, last_row[stage], hardware) for stage in range(config.parallel.pipeline))
    updated = max(optimizer_s(config, stage, hardware) for stage in range(config.parallel.pipeline))
    step_s = timeline.total_s + exposed + updated + hardware.step_s
    flops = workload.step_flops(config)
    per_gpu = flops["total"] / step_s / config.parallel.world_size
    peak = hardware.fp32_flops if config.precision.dtype == "fp32" else hardware.bf16_flops
    kinds = _kinds(config, mean, timeline)
    kinds |= {"gradients and weights": exposed, "optimizer": updated, "rest": hardware.step_s}
    return Prediction(step_s, kinds, timeline, flops, per_gpu / 1e12, per_gpu / peak, slowest)


def estimate_s(config: RunConfig, workload: Workload, hardware: Hardware) -> float:
    """Return a step's time without playing it through, from the mean row: for choosing among many grids.

    Exact for one stage and equal rows. For several it is what the stage with most work needs, and the time that the
    others' passes of one row stand before and behind it, a chunk's share of that where stages are interleaved.
    """
    p, count = config.parallel, config.training.global_batch_rows // config.parallel.data
    seconds = row_seconds(config, row_parts(config, workload.mean, hardware))
    of_stages = [sum(map(sum, stage)) for stage in seconds]
    hop_s = ring_s(hop_bytes(config, workload.mean), 1, groups(config)["pipeline"], hardware)
    waiting = (sum(of_stages) - max(of_stages)) / p.virtual_pipeline + 2 * hop_s * (p.pipeline - 1)
    stage = of_stages.index(max(of_stages))
    once = exposed_step_s(config, stage, seconds[stage], hardware) + optimizer_s(config, stage, hardware)
    return count * max(of_stages) + waiting + once + hardware.step_s


def slowest_rows(config: RunConfig, workload: Workload, hardware: Hardware) -> tuple[list[Row], float]:
    """Return the rows of a step that its slowest replica gets, and its work over the mean."""
    replicas = config.parallel.data
    rows = workload.rows_of_step(config.training.global_batch_rows)
    count = len(rows) // replicas
    if len(workload.rows) == 1:
        return rows[:count], 1.0
    works = {id(row): _work(config, row, hardware) for row in workload.rows}
    costs = [works[id(row)] for row in rows]
    deal = max(deal_rows(costs, replicas), key=lambda numbers: sum(costs[number] for number in numbers))
    return [rows[number] for number in deal], sum(costs[number] for number in deal) / (sum(costs) / replicas)


def exposed_step_s(config: RunConfig, stage: int, last_row: Sequence[Seconds], hardware: Hardware) -> float:
    """Return the seconds in which a stage only exchanges gradients and weights.

    `megatron.overlap_grad_reduce` hides gradients behind the backward pass of the step's last row,
    `megatron.overlap_param_gather` weights behind the forward pass of its first.
    """
    of_axes, sent = groups(config), step_bytes(config, stage)
    shared, experts = of_axes["data"], of_axes["expert data"]
    gradients = ring_s(sent.gradients, 1, shared, hardware) + ring_s(sent.expert_gradients, 1, experts, hardware)
    weights = ring_s(sent.weights, 1, shared, hardware) + ring_s(sent.expert_weights, 1, experts, hardware)
    if config.megatron.get("overlap_grad_reduce"):
        gradients = max(0.0, gradients - sum(chunk.backward for chunk in last_row))
    if config.megatron.get("overlap_param_gather"):
        weights = max(0.0, weights - sum(chunk.forward for chunk in last_row))
    copies = ring_s(sent.shared_gradients, 1, of_axes["tensor"], hardware)
    return gradients + weights + copies + ring_s(sent.tied_gradients, 1, of_axes["pipeline"], hardware)


def optimizer_s(config: RunConfig, stage: int, hardware: Hardware) -> float:
    """Return the seconds of a stage's update: its share of the states, moved `OPTIMIZER_PASSES` times."""
    p, held = config.parallel, trained_parameters(config, stage)
    ranks = p.context * p.data
    share = held.others / ranks + held.experts * p.expert / (p.tensor * ranks)
    moved = OPTIMIZER_PASSES * PRECISIONS[config.precision.dtype].optimizer * share
    return moved / (hardware.hbm_bytes_per_s * hardware.hbm)


def _work(config: RunConfig, row: Row, hardware: Hardware) -> float:
    return sum(sum(map(sum, stage)) for stage in row_seconds(config, row_parts(config, row.load, hardware)))


def _kinds(config: RunConfig, parts: RowParts, timeline: Timeline) -> dict[str, float]:
    """The pipeline's time by kind on the stage that works longest: the mean row's kinds, scaled to what it computed."""
    busy = timeline.busy_s
    stage = busy.index(max(busy))
    kinds: dict[str, float] = {}
    for chunk in chunks(config)[stage]:
        for kind, seconds in chunk_kinds(parts, chunk).items():
            kinds[kind] = kinds.get(kind, 0.0) + sum(seconds)
    scale = busy[stage] / sum(kinds.values())
    return {kind: seconds * scale for kind, seconds in kinds.items()} | {"bubble": timeline.total_s - busy[stage]}
