"""Estimates of memory and disk before a run starts: what the worst rank holds, what a checkpoint weighs.

Weights, gradients and optimizer states are counted from the exact parameter counts; activations are an
estimate for rows that are full of image tokens. Not in it: the CUDA context (about 1 GB), communication
buffers, fragmentation, temporary buffers of kernels, experts that get more tokens than others. Formulas:
`worst_rank` and `_stage_activations`.
"""

import math
from dataclasses import dataclass

from megatron_medx.config.grid import stage_layers
from megatron_medx.config.parameters import (
    PART_OF,
    decoder_layer_matrices,
    decoder_layer_parameters,
    expert_layer_matrices,
    parameter_counts,
)
from megatron_medx.config.run import RunConfig

UNEVEN_IMAGES = 1.1
"""Patches of the rank that encodes most, over the mean of the ranks that share a row's images."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes per value. Optimizer bytes are sharded over data parallel by the distributed optimizer."""

    weight: int
    """Of every parameter, trained or not."""
    gradient: int
    """Of every trained parameter: the fp32 gradient buffer."""
    optimizer: int
    """Of every trained parameter: Adam's two moments, and fp32 main weights where the weights are bf16."""
    activation: int
    """Of a value kept for the backward pass."""
    logit: int
    """Of a logit: at the output's precision, and once more in fp32 for the loss where that is bf16."""


PRECISIONS = {
    "bf16": Precision(weight=2, gradient=4, optimizer=12, activation=2, logit=6),
    "fp32": Precision(weight=4, gradient=4, optimizer=8, activation=4, logit=4),
}


def worst_rank(config: RunConfig) -> dict[str, int]:
    """Return bytes by kind on the pipeline stage that holds most: weights, gradients, optimizer, activations.

    With T tensor ranks, C context ranks, D data replicas, E ranks that share the experts, p_s parameters held by a rank
    of stage s and t_s those of them that are trained (x_s of them in experts):

        weights = w p_s, gradients = 4 t_s, optimizer = o ((t_s - x_s) / (C D) + x_s / (T C D / E))
        (bf16: w = 2, o = 12; fp32: w = 4, o = 8)

    A stage holds its own layers, embedding and tower if it is the first, the output layer if it is the last. Decoder
    matrices, embedding and output layer are cut by T, experts are dealt over E; norms, routers, the tower and the
    mergers are whole on every rank of their stage. With pipeline stages, tied embeddings exist twice: first and last.
    """
    stages = [_stage(config, stage) for stage in range(config.parallel.pipeline)]
    return max(stages, key=lambda kinds: sum(kinds.values()))


def checkpoint_bytes(config: RunConfig) -> int:
    """Return the size of one checkpoint: every weight once, and for trained ones fp32 weight and two moments.

    With bf16 2 + 12 bytes a trained parameter, with fp32 4 + 12: the distributed optimizer writes its fp32
    weights beside the model's in either case. Measured: 49.1 MB for the demo (fp32, tensor 2), 48.0 by this.
    """
    counts = parameter_counts(config.model)
    trained = sum(count for piece, count in counts.items() if _is_trained(config, piece))
    return PRECISIONS[config.precision.dtype].weight * sum(counts.values()) + 12 * trained


def _is_trained(config: RunConfig, piece: str) -> bool:
    return PART_OF["decoder" if piece == "experts" else piece] not in config.training.freeze


def _stage(config: RunConfig, stage: int) -> dict[str, int]:
    precision, parallel = PRECISIONS[config.precision.dtype], config.parallel
    held = _stage_parameters(config, stage)
    trained = {piece: count for piece, count in held.items() if _is_trained(config, piece)}
    experts = trained.pop("experts", 0)
    others, shards = sum(trained.values()), parallel.data * parallel.context
    sharded = others / shards + experts * parallel.expert / (parallel.tensor * shards)
    return {
        "weights": precision.weight * sum(held.values()),
        "gradients": precision.gradient * (others + experts),
        "optimizer": math.ceil(precision.optimizer * sharded),
        "activations": _stage_activations(config, stage),
    }


def _stage_parameters(config: RunConfig, stage: int) -> dict[str, int]:
    """Parameters that one rank of a pipeline stage holds, by piece; experts apart from the rest of the decoder."""
    model, tensor = config.model, config.parallel.tensor
    counts, layers = parameter_counts(model), stage_layers(config)[stage]
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


def _stage_activations(config: RunConfig, stage: int) -> int:
    """Bytes kept for the backward pass on one rank of a pipeline stage, for full rows of S tokens.

    A rank holds S / (tensor x context) tokens of every row in flight (`_in_flight`). A decoder layer keeps per token
    4 hidden (both norms in and out) + 3 query (before and after its norm, attention out) + 4 key/value widths and its
    MLP: 3 MLP widths, or, of k experts a token, k x (2 hidden (in and out) + 3 expert widths) and 2 router outputs for
    each expert. `full` recomputation keeps one hidden per layer, and all of one layer once; `selective` changes
    nothing where attention is fused, as scores are never stored. The last stage adds the logits of one row.

    A tower layer keeps per patch 10 tower + 2 MLP widths, and recomputation does the same for it. The images of a row
    are dealt to the tensor x context ranks of the first stage; the worst of them is taken to encode 1.1 times the mean,
    and no less than one image of data.max_pixels.
    """
    model, parallel, training = config.model, config.parallel, config.training
    precision = PRECISIONS[config.precision.dtype]
    tokens = config.data.seq_len_tokens / (parallel.tensor * parallel.context)
    layers, (chunks, first_chunks) = stage_layers(config)[stage], _in_flight(config, stage)
    rows = chunks / parallel.virtual_pipeline  # a chunk is 1 / virtual_pipeline of the stage's layers
    held = tokens * _kept(training.recompute, layers, model.hidden_size, _layer_widths(config), rows)
    if stage == 0:
        held += _worst_patches(config) * _tower_values(config, first_chunks)
    held *= precision.activation
    if stage == parallel.pipeline - 1:
        held += tokens * model.vocab_size * precision.logit
    return int(held)


def _in_flight(config: RunConfig, stage: int) -> tuple[int, int]:
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
        in_flight = min(rows, stages - stage)
        return in_flight, in_flight
    return min(virtual * rows, 2 * (stages - stage - 1) + (virtual - 1) * stages + 1), min(rows, 2 * stages)


def _kept(recompute: str, layers: int, hidden: int, widths: int, rows: float) -> float:
    """Values kept per token (or patch) by so many layers for so many rows: all, or inputs and one layer at work."""
    return rows * layers * hidden + widths if recompute == "full" else rows * layers * widths


def _layer_widths(config: RunConfig) -> int:
    """Values that a decoder layer keeps per token."""
    model = config.model
    widths = 4 * model.hidden_size + 3 * model.head_dim * model.num_heads + 4 * model.head_dim * model.num_kv_heads
    if not model.is_moe:
        return widths + 3 * model.ffn_hidden_size
    expert = 2 * model.hidden_size + 3 * model.expert_ffn_hidden_size
    return widths + model.experts_per_token * expert + 2 * model.num_experts


def _worst_patches(config: RunConfig) -> float:
    """Patches that the rank with most of them encodes, of a row that is full of image tokens."""
    vision, ranks = config.model.vision, config.parallel.tensor * config.parallel.context
    row = config.data.seq_len_tokens * vision.merge_size**2
    if ranks == 1:
        return row
    return min(row, max(UNEVEN_IMAGES * row / ranks, config.data.max_pixels // vision.patch_size**2))


def _tower_values(config: RunConfig, rows: int) -> float:
    """Values kept per patch by tower and mergers: little if only the mergers are trained, nothing if neither is."""
    vision, training = config.model.vision, config.training
    if "vision" not in training.freeze:
        widths = 10 * vision.hidden_size + 2 * vision.ffn_hidden_size
        return _kept(training.recompute_vision, vision.num_layers, vision.hidden_size, widths, rows)
    return 0 if "merger" in training.freeze else rows * (1 + len(vision.deepstack_layers)) * 4 * vision.hidden_size
