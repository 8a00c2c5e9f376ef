"""Estimates of memory and disk before a run starts: what each pipeline stage's ranks hold, what a checkpoint weighs.

Weights, gradients and optimizer states are counted from the exact parameter counts. Activations are counted by the
tables of activation_tables.py, of which those of plain torch are held against real tensors
(tests/unit/config/test_memory_counts.py) and those of Transformer Engine were read in its code. Not in it: the CUDA
context and NCCL (assumed: 1 to 3 GB), fragmentation, temporary tensors of kernels, the padding of Megatron's buffers
(tensors begin at multiples of 64 values, which real widths are), experts that get more tokens than others.
"""

import math

from megatron_medx.config.activations import (
    RowLoad,
    decoder_row,
    first_stage_row,
    last_stage_row,
    row_load,
    vision_row,
)
from megatron_medx.config.communication import communication_bytes
from megatron_medx.config.grid import stage_layers
from megatron_medx.config.number_bytes import FP8_BYTES, PRECISIONS
from megatron_medx.config.parameters import (
    PART_OF,
    decoder_layer_matrices,
    decoder_layer_parameters,
    expert_layer_matrices,
    parameter_counts,
)
from megatron_medx.config.run import RunConfig


def stage_memory(config: RunConfig, stage: int, row_patches: int | None = None) -> dict[str, int]:
    """Return the bytes that a rank of a pipeline stage holds at most, by kind.

    With T tensor ranks, C context ranks, D data replicas, E ranks that share the experts, p parameters held by a rank
    and t those of them that are trained (x of them in experts):

        weights             w p, and 2 bytes more for each that is multiplied in FP8
        gradients           4 t
        optimizer           o ((t - x) / (C D) + x / (T C D / E))        bf16: w = 2, o = 12; fp32: w = 4, o = 8
        vision activations  tower and mergers of the rows in flight, where the stage is the first
        decoder activations the stage's layers, and what the first and the last stage have before and behind theirs
        logits              of one row, where the stage is the last (`_logits`)
        communication       buffers (communication.py)

    A stage holds its own layers, embedding and tower if it is the first, the output layer if it is the last. Decoder
    matrices, embedding and output layer are cut by T, experts are dealt over E; norms, routers, the tower and the
    mergers are whole on every rank of their stage. With pipeline stages, tied embeddings exist twice: first and last.

    Args:
        config: a legal one.
        stage: from 0.
        row_patches: patches of the images of one row, before merging; None: a row that is full of image tokens.
    """
    return _stage(config, stage, stage_layers(config), _fp8_layers(config), row_load(config, row_patches))


def worst_rank(config: RunConfig, row_patches: int | None = None) -> dict[str, int]:
    """Return the bytes by kind on the pipeline stage that holds most; see `stage_memory`."""
    layers, fp8_layers, load = stage_layers(config), _fp8_layers(config), row_load(config, row_patches)
    stages = [_stage(config, stage, layers, fp8_layers, load) for stage in range(config.parallel.pipeline)]
    return max(stages, key=lambda kinds: sum(kinds.values()))


def checkpoint_bytes(config: RunConfig) -> int:
    """Return the size of one checkpoint: every weight once, and for trained ones fp32 weight and two moments.

    With bf16 2 + 12 bytes a trained parameter, with fp32 4 + 12: the distributed optimizer writes its fp32
    weights beside the model's in either case. Measured: 49.1 MB for the demo (fp32, tensor 2), 48.0 by this.
    """
    counts = parameter_counts(config.model)
    trained = sum(count for piece, count in counts.items() if _is_trained(config, piece))
    return PRECISIONS[config.precision.dtype].weight * sum(counts.values()) + 12 * trained


def stage_parameters(config: RunConfig, stage: int) -> dict[str, int]:
    """Return the parameters that one rank of a pipeline stage holds, by piece; experts apart from their decoder."""
    return _parameters(config, stage, stage_layers(config)[stage])


def in_flight(config: RunConfig, stage: int) -> tuple[int, int]:
    """Return the most (chunks of a row, first chunks of a row) whose activations a rank of a stage keeps at once.

    With P stages, stage s from 0, m rows for each replica and v chunks a stage:

        v = 1   1F1B: min(m, P - s) rows, each one chunk
        v > 1   interleaved: min(v m, 2 (P - s - 1) + (v - 1) P + 1) chunks; before the first chunk of the first row
                has its backward pass, first chunks of 2 P rows have had their forward pass: min(m, 2 P) on stage 0
    """
    parallel = config.parallel
    stages, virtual = parallel.pipeline, parallel.virtual_pipeline
    rows = config.training.global_batch_rows // parallel.data
    if virtual == 1:
        most = min(rows, stages - stage)
        return most, most
    return min(virtual * rows, 2 * (stages - stage - 1) + (virtual - 1) * stages + 1), min(rows, 2 * stages)


def _stage(config: RunConfig, stage: int, layers: list[int], fp8_layers: list[int], load: RowLoad) -> dict[str, int]:
    precision, parallel = PRECISIONS[config.precision.dtype], config.parallel
    first, last = stage == 0, stage == parallel.pipeline - 1
    held = _parameters(config, stage, layers[stage])
    trained = {piece: count for piece, count in held.items() if _is_trained(config, piece)}
    experts = trained.pop("experts", 0)
    others, shards = sum(trained.values()), parallel.data * parallel.context
    sharded = others / shards + experts * parallel.expert / (parallel.tensor * shards)
    chunks, first_chunks = in_flight(config, stage)
    rows = chunks / parallel.virtual_pipeline  # a chunk is 1 / virtual_pipeline of the stage's layers
    vision, decoder = 0.0, _in_all(decoder_row(config, load, layers[stage], fp8_layers[stage]), rows)
    if first:
        vision = _in_all(vision_row(config, load), first_chunks)
        decoder += _in_all(first_stage_row(config, load), first_chunks)
    if last:
        decoder += last_stage_row(config, load)
    return {
        "weights": precision.weight * sum(held.values()) + _fp8_copies(config, stage, fp8_layers[stage]),
        "gradients": precision.gradient * (others + experts),
        "optimizer": math.ceil(precision.optimizer * sharded),
        "vision activations": int(vision),
        "decoder activations": int(decoder),
        "logits": _logits(config, load) if last else 0,
        "communication": communication_bytes(config, stage, load),
    }


def _in_all(row: tuple[float, float], rows: float) -> float:
    stays, works = row
    return rows * stays + works


def _logits(config: RunConfig, load: RowLoad) -> int:
    """Bytes of the last stage's logits: at the loss, or, if that is more, when their gradient is multiplied out.

    At the loss a logit takes 2 + 4 bytes with bf16, 4 with fp32, where the loss turns it into its gradient in place.
    After it the gradient, at the precision of activations, lies beside the gradient of the output layer's weight, which
    is added to the gradient buffer only when it is complete.
    """
    precision, model = PRECISIONS[config.precision.dtype], config.model
    logits = load.tokens * model.vocab_size  # (S / C tokens) x (vocabulary / T)
    weight = (
        0 if "language" in config.training.freeze else model.vocab_size * model.hidden_size / config.parallel.tensor
    )
    return int(max(precision.logit * logits, precision.activation * (logits + weight)))


def _is_trained(config: RunConfig, piece: str) -> bool:
    return PART_OF["decoder" if piece == "experts" else piece] not in config.training.freeze


def _parameters(config: RunConfig, stage: int, layers: int) -> dict[str, int]:
    model, tensor = config.model, config.parallel.tensor
    counts = parameter_counts(model)
    matrices, experts = decoder_layer_matrices(model), expert_layer_matrices(model)
    whole = decoder_layer_parameters(model) - matrices - experts
    held = {"decoder": layers * (matrices // tensor + whole), "experts": layers * experts // config.parallel.expert}
    if stage == 0:
        held |= {"vision": counts["vision"], "merger": counts["merger"], "embeddings": counts["embeddings"] // tensor}
    if stage == config.parallel.pipeline - 1:
        held["decoder"] += model.hidden_size
        copies_the_embedding = model.tie_embeddings and stage > 0
        held["output"] = (counts["embeddings"] if copies_the_embedding else counts["output"]) // tensor
    return held


def _fp8_layers(config: RunConfig) -> list[int]:
    """Decoder layers of each stage that compute in FP8: all but the first and last few of the network.

    The first layers lie on the first chunks of the first stages, the last ones on the last chunks of the last.
    """
    layers, precision = stage_layers(config), config.precision
    if precision.fp8 == "none":
        return [0] * len(layers)
    counts, virtual, start = [0] * len(layers), config.parallel.virtual_pipeline, 0
    first, end = precision.bf16_first_layers, config.model.num_layers - precision.bf16_last_layers
    for _ in range(virtual):
        for stage, of_stage in enumerate(layers):
            stop = start + of_stage // virtual
            counts[stage] += max(0, min(stop, end) - max(start, first))
            start = stop
    return counts


def _fp8_copies(config: RunConfig, stage: int, fp8_layers: int) -> int:
    """Bytes of the FP8 copies of the matrices of a rank."""
    precision, model, parallel = config.precision, config.model, config.parallel
    if precision.fp8 == "none":
        return 0
    values = fp8_layers * (
        decoder_layer_matrices(model) / parallel.tensor + expert_layer_matrices(model) / parallel.expert
    )
    if precision.fp8_vision and stage == 0:
        vision = model.vision
        values += vision.num_layers * (4 * vision.hidden_size + 2 * vision.ffn_hidden_size) * vision.hidden_size
    return int(FP8_BYTES[precision.fp8].weight_copies * values)
