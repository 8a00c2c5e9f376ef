"""Estimates of memory and disk before a run starts: what the worst rank holds, what a checkpoint weighs.

Weights, gradients and optimizer states are counted from the exact parameter counts; activations are an
estimate for a row that is full of image tokens. Not in it: the CUDA context (about 1 GB), communication
buffers, fragmentation, temporary buffers of kernels. Formulas: `worst_rank` and `_stage_activations`.
"""

from dataclasses import dataclass

from megatron_medx.config.parameters import (
    PART_OF,
    decoder_layer_matrices,
    decoder_layer_parameters,
    parameter_counts,
)
from megatron_medx.config.run import RunConfig


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

    With T tensor ranks, D data x context ranks, P pipeline stages, p_s parameters held by a rank of stage s
    and t_s those of them that are trained:

        weights = w p_s, gradients = 4 t_s, optimizer = o t_s / D
        (bf16: w = 2, o = 12; fp32: w = 4, o = 8)

    Decoder matrices, embedding and output layer are cut by T; norms, the tower and the mergers are whole on every
    rank of the first stage. With pipeline stages, tied embeddings exist twice: first and last stage.
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
    return PRECISIONS[config.training.precision].weight * sum(counts.values()) + 12 * trained


def _is_trained(config: RunConfig, piece: str) -> bool:
    return PART_OF[piece] not in config.training.freeze


def _stage(config: RunConfig, stage: int) -> dict[str, int]:
    precision = PRECISIONS[config.training.precision]
    held = _stage_parameters(config, stage)
    trained = sum(count for piece, count in held.items() if _is_trained(config, piece))
    shards = config.parallel.data * config.parallel.context
    return {
        "weights": precision.weight * sum(held.values()),
        "gradients": precision.gradient * trained,
        "optimizer": -(-precision.optimizer * trained // shards),
        "activations": _stage_activations(config, stage),
    }


def _stage_parameters(config: RunConfig, stage: int) -> dict[str, int]:
    """Parameters that one rank of a pipeline stage holds, by piece."""
    model, tensor, pipeline = config.model, config.parallel.tensor, config.parallel.pipeline
    counts = parameter_counts(model)
    matrices = decoder_layer_matrices(model)
    layer = matrices // tensor + decoder_layer_parameters(model) - matrices
    held = {"decoder": model.num_layers // pipeline * layer}
    if stage == 0:
        held |= {"vision": counts["vision"], "merger": counts["merger"], "embeddings": counts["embeddings"] // tensor}
    if stage == pipeline - 1:
        held["decoder"] += model.hidden_size
        copies_the_embedding = model.tie_embeddings and stage > 0
        held["output"] = (counts["embeddings"] if copies_the_embedding else counts["output"]) // tensor
    return held


def _stage_activations(config: RunConfig, stage: int) -> int:
    """Bytes kept for the backward pass on one rank of a pipeline stage, for full rows.

    The 1F1B schedule keeps as many microbatches as there are stages from this one to the last. A decoder
    layer keeps per token 4 hidden (both norms in and out) + 3 query (before and after its norm, attention out)
    + 4 key/value + 3 MLP widths, cut by tensor (sequence parallelism) and context; `full` recomputation keeps
    one hidden per layer and one layer whole; `selective` changes nothing where attention is fused, as scores
    are never stored. A tower layer keeps per patch 10 tower + 2 MLP widths; every rank of the first stage is
    taken to encode all images of its row.
    """
    model, vision, parallel = config.model, config.model.vision, config.parallel
    precision = PRECISIONS[config.training.precision]
    tokens = config.data.seq_len_tokens / (parallel.tensor * parallel.context)
    layers = model.num_layers // parallel.pipeline
    widths = 4 * model.hidden_size + 3 * model.head_dim * model.num_heads + 4 * model.head_dim * model.num_kv_heads
    widths += 3 * model.ffn_hidden_size
    kept = layers * model.hidden_size + widths if config.training.recompute == "full" else layers * widths
    in_flight = min(parallel.pipeline - stage, config.training.global_batch_rows // parallel.data)
    held = in_flight * tokens * kept * precision.activation
    if stage == 0:
        patches = config.data.seq_len_tokens * vision.merge_size**2
        held += in_flight * patches * _tower_widths(config) * precision.activation
    if stage == parallel.pipeline - 1:
        held += tokens * model.vocab_size * precision.logit
    return int(held)


def _tower_widths(config: RunConfig) -> int:
    """Values kept per patch by tower and mergers: little if only the mergers are trained, nothing if neither is."""
    vision, freeze = config.model.vision, config.training.freeze
    if "vision" not in freeze:
        return vision.num_layers * (10 * vision.hidden_size + 2 * vision.ffn_hidden_size)
    return 0 if "merger" in freeze else (1 + len(vision.deepstack_layers)) * 4 * vision.hidden_size
