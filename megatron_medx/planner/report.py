"""The whole plan of a run as a dictionary of numbers: what `medx plan --json` writes, and `lines.py` says in words.

Comes in: a checked run. Goes out: numbers in base units, each with its unit in its name. `SCHEMA` counts changes of
names and meanings; a reader of an older one need not guess.
"""

from megatron_medx.config.memory import worst_rank
from megatron_medx.config.parameters import parameter_counts
from megatron_medx.config.run import RunConfig
from megatron_medx.planner.fitting import memory_by_stage
from megatron_medx.planner.grids import overrides
from megatron_medx.planner.hardware import Hardware, ceilings
from megatron_medx.planner.links import groups, link
from megatron_medx.planner.search import Found
from megatron_medx.planner.step_time import Prediction, chunks
from megatron_medx.planner.traffic import hop_bytes, layer_messages, output_messages, step_bytes, tower_messages
from megatron_medx.planner.workload import Workload

SCHEMA = 1

MOST_BETTER = 3
"""Better grids that are named."""

LEAST_GAIN = 0.02
"""Share of the step's time that a grid must save to be called better: a prediction is not finer."""


def plan_report(
    config: RunConfig,
    workload: Workload,
    prediction: Prediction,
    found: list[Found],
    hardware: Hardware,
    grid_from: str,
) -> dict:
    """Return the plan of a run.

    Args:
        config: the run, checked, on the grid that is planned.
        workload: what its rows hold.
        prediction: of its step.
        found: the fastest grids that fit, from `search.best_grids`.
        hardware: ceilings of the prediction.
        grid_from: who chose the grid, in words.
    """
    p, steps = config.parallel, config.training.steps
    hours = steps * prediction.step_s / 3600
    tokens = config.tokens_per_step / prediction.step_s
    return {
        "schema": SCHEMA,
        "recipe": config.run.recipe,
        "gpus": p.world_size,
        "grid": {key: getattr(p, key) for key in p.__slots__} | {"data": p.data, "from": grid_from},
        "recompute": {"decoder": config.training.recompute, "vision": config.training.recompute_vision},
        "precision": {"dtype": config.precision.dtype, "fp8": config.precision.fp8},
        "parameters": parameter_counts(config.model) | {"total": sum(parameter_counts(config.model).values())},
        "memory": _memory(config, hardware),
        "data": _data(config, workload),
        "flops_per_step": prediction.flops,
        "traffic": traffic(config, workload, hardware),
        "pipeline": _pipeline(config, prediction),
        "step_seconds": {"total": prediction.step_s, "by_kind": prediction.kinds},
        "speed": {
            "model_tflops_per_s_per_gpu": prediction.tflops_per_gpu,
            "mfu": prediction.mfu,
            "token_slots_per_s": tokens,
            "token_slots_per_s_per_gpu": tokens / p.world_size,
            "slowest_replica_over_mean": prediction.slowest_replica,
        },
        "run": {
            "steps": steps,
            "token_slots": steps * config.tokens_per_step,
            "hours": hours,
            "days": hours / 24,
            "gpu_hours": hours * p.world_size,
        },
        "better": better_grids(config, prediction, found),
        "ceilings": [entry._asdict() for entry in ceilings(hardware)],
    }


def better_grids(config: RunConfig, prediction: Prediction, found: list[Found]) -> list[dict]:
    """Return the fastest grids that save a share of the step worth naming, each grid once, as overrides to paste."""
    better, grids = [], []
    for entry in found:
        saved = 1 - entry.prediction.step_s / prediction.step_s
        if saved < LEAST_GAIN or entry.config.parallel in grids:
            continue
        grids.append(entry.config.parallel)
        better.append(
            {
                "overrides": overrides(entry.config, config),
                "step_seconds": entry.prediction.step_s,
                "saved_share": saved,
                "mfu": entry.prediction.mfu,
                "worst_rank_bytes": sum(worst_rank(entry.config).values()),
                "gpu_hours": config.training.steps * entry.prediction.step_s / 3600 * config.parallel.world_size,
            }
        )
    return better[:MOST_BETTER]


def traffic(config: RunConfig, workload: Workload, hardware: Hardware) -> list[dict]:
    """Return, for every axis of several ranks, bytes that a rank sends in a step and what carries them.

    Of the stages the one that sends most along the axis; for rows the mean row of the workload.
    """
    mean, rows = workload.mean, config.training.global_batch_rows // config.parallel.data
    layer, first, last = layer_messages(config, mean), tower_messages(config, mean), output_messages(config, mean)
    full = config.training.recompute == "full"
    sent: dict[str, float] = {}
    for stage, held in enumerate(chunks(config)):
        own: dict[str, float] = {}
        for chunk in held:
            layers = chunk.layers + chunk.fp8_layers
            for messages, count in ((layer, layers), (first, int(chunk.is_first)), (last, int(chunk.is_last))):
                for axis, one in messages.items():
                    one = one.again() if full and messages is layer else one
                    own[axis] = own.get(axis, 0.0) + rows * count * (one.forward_bytes + one.backward_bytes)
        once = step_bytes(config, stage)
        own["tensor"] = own.get("tensor", 0.0) + once.shared_gradients
        own["data"] = once.gradients + once.weights
        own["expert data"] = once.expert_gradients + once.expert_weights
        ends = 2 - (stage == 0) - (stage == config.parallel.pipeline - 1)
        hops = 2 * config.parallel.virtual_pipeline - (2 - ends)
        own["pipeline"] = rows * hops * hop_bytes(config, mean) + once.tied_gradients
        sent = {axis: max(size, sent.get(axis, 0.0)) for axis, size in own.items()}
    of_axes = groups(config)
    return [
        {"axis": axis, "ranks": group.size, "bytes_per_step": sent[axis], **_link(config, axis, hardware)}
        for axis, group in of_axes.items()
        if group.size > 1 and sent.get(axis)
    ]


def _link(config: RunConfig, axis: str, hardware: Hardware) -> dict[str, object]:
    carries = link(groups(config)[axis], hardware)
    return {"link": carries.name, "bytes_per_s": carries.bytes_per_s}


def _memory(config: RunConfig, hardware: Hardware) -> dict[str, object]:
    worst = sum(worst_rank(config).values())
    return {
        "limit_bytes": hardware.memory_bytes,
        "worst_rank_bytes": worst,
        "margin_bytes": hardware.memory_bytes - worst,
        "worst_rank": worst_rank(config),
        "stages": memory_by_stage(config),
    }


def _data(config: RunConfig, workload: Workload) -> dict[str, object]:
    count = len(workload.rows)
    return {
        "source": workload.source,
        "is_assumed": workload.is_assumed,
        "rows_per_step": config.training.global_batch_rows,
        "token_slots_per_row": workload.mean.slots,
        "filled_share": workload.fill,
        "image_token_share": workload.image_share(config.model),
        "samples_per_row": sum(len(row.samples) for row in workload.rows) / count,
        "images_per_row": sum(len(row.images) for row in workload.rows) / count,
        "patches_per_row": workload.mean.patches,
    }


def _pipeline(config: RunConfig, prediction: Prediction) -> dict[str, object]:
    timeline, p = prediction.timeline, config.parallel
    held = chunks(config)
    return {
        "rows_per_replica": config.training.global_batch_rows // p.data,
        "seconds": timeline.total_s,
        "idle_share": timeline.idle_share,
        "stages": [
            {"layers": sum(chunk.layers + chunk.fp8_layers for chunk in own), "busy_seconds": busy}
            for own, busy in zip(held, timeline.busy_s, strict=True)
        ],
    }
