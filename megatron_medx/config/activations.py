"""Bytes of activations that one rank keeps for the backward pass of one row, from the tables of activation_tables.py.

In: a configuration and what a rank has of a row (`row_load`). Out: bytes of decoder layers, of what only the first and
the last stage have, and of the tower. How many rows are in flight is memory.py's matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from megatron_medx.config.activation_tables import (
    BALANCE,
    DEEPSTACK_MERGER,
    FINAL_MERGER,
    IMAGE_TOKEN,
    STEM,
    TABLES,
    UNSHARED_TAP,
    Kept,
)
from megatron_medx.config.number_bytes import FP8_BYTES, PRECISIONS
from megatron_medx.config.run import RunConfig

UNEVEN_IMAGES = 1.1
"""Patches of the rank that encodes most, over the mean of the ranks that share a row's images."""

WORD = 4
"""Bytes of an fp32 or int32."""


class RowBytes(NamedTuple):
    """Bytes that a row keeps on a rank."""

    stays: float
    """Until its backward pass: once for each row in flight."""
    works: float
    """Only while it is worked on: once, however many rows are in flight."""


@dataclass(frozen=True, slots=True)
class RowLoad:
    """What one rank has of a row at most."""

    row_tokens: int
    """Of the whole row."""
    tokens: float
    """Of these between layers: row_tokens / (tensor x context)."""
    image_tokens: float
    """Of these at most that are image tokens."""
    patches: float
    """That the first stage's rank with most of them encodes."""


def row_load(config: RunConfig, row_patches: int | None = None) -> RowLoad:
    """Return what a rank has of a row.

    The images of a row are dealt to the tensor x context ranks of the first stage. The rank with most of them is taken
    to encode 1.1 times the mean, and no less than one image of data.max_pixels.

    Args:
        config: a legal one.
        row_patches: patches of a row's images before merging; None: as many as row and `data.max_row_patches` allow.
    """
    vision, data, ranks = config.model.vision, config.data, config.parallel.tensor * config.parallel.context
    tokens = data.seq_len_tokens / ranks
    if row_patches is None:
        row_patches = data.seq_len_tokens * vision.merge_size**2
        row_patches = min(row_patches, data.max_row_patches or row_patches)
    patches = float(row_patches)
    if ranks > 1:
        patches = min(patches, max(UNEVEN_IMAGES * patches / ranks, data.max_pixels // vision.patch_size**2))
    return RowLoad(data.seq_len_tokens, tokens, min(tokens, row_patches / vision.merge_size**2), patches)


def decoder_row(config: RunConfig, load: RowLoad, layers: int, fp8_layers: int = 0) -> RowBytes:
    """Return the bytes of one row in so many decoder layers, of which `fp8_layers` compute in FP8.

    Each model chunk keeps the rotary cosines and sines of a rank's tokens, which its layers and tensor ranks do not
    share out. Recomputed in full, a layer keeps its input, and one layer at work keeps all.
    """
    model, training = config.model, config.training
    precision = PRECISIONS[config.precision.dtype]
    table, widths = TABLES[precision.backend], decoder_widths(config)
    parts = [table["attention"], table["experts" if model.is_moe else "mlp"]]
    if model.is_moe and model.router_aux_loss_coef:
        parts.append(BALANCE)
    if training.recompute == "selective":
        parts.append(table["selective"])
    trained, fp8 = "language" not in training.freeze, config.precision.fp8
    parallel = config.parallel
    turns = 2.0 * load.tokens * parallel.tensor * model.head_dim * precision.activation * parallel.virtual_pipeline
    plain = load.tokens * _bytes(parts, widths, precision.activation, trained)
    quantized = plain
    if fp8_layers:
        quantized = load.tokens * _bytes(parts, widths, precision.activation, trained, fp8, "query")
    if training.recompute == "full":
        inputs = layers * load.tokens * model.hidden_size * precision.activation
        return RowBytes(inputs + turns, max(plain, quantized))
    return RowBytes((layers - fp8_layers) * plain + fp8_layers * quantized + turns, 0.0)


def first_stage_row(config: RunConfig, load: RowLoad) -> RowBytes:
    """Return the bytes of one row between tower and decoder: ids for the embedding's gradient, image tokens in places.

    The DeepStack levels of all tokens, zero at text, are there until the decoder is through; recomputed layers keep
    them.
    """
    model, value = config.model, PRECISIONS[config.precision.dtype].activation
    levels = len(model.vision.deepstack_layers)
    stays = 2.0 * WORD * load.tokens * config.parallel.tensor * ("language" not in config.training.freeze)
    if not {"vision", "merger"} <= set(config.training.freeze):
        widths = {"features": (1 + levels) * model.hidden_size, "one": 1}
        stays += load.image_tokens * _bytes([IMAGE_TOKEN], widths, value, True)
    context = levels * load.tokens * model.hidden_size * value
    return RowBytes(stays + context, 0.0) if config.training.recompute == "full" else RowBytes(stays, context)


def last_stage_row(config: RunConfig, load: RowLoad) -> float:
    """Return the bytes of one row in the norm before the output layer; logits are counted apart."""
    precision = PRECISIONS[config.precision.dtype]
    table, trained = TABLES[precision.backend], "language" not in config.training.freeze
    return load.tokens * _bytes([table["final_norm"]], decoder_widths(config), precision.activation, trained)


def vision_row(config: RunConfig, load: RowLoad) -> RowBytes:
    """Return the bytes of one row in tower and mergers: of the mergers alone where the tower is frozen, 0 if both are.

    Rotary cosines and sines are kept once. Recomputed in full, tower layers keep their inputs, and one layer at work
    keeps all.
    """
    vision, training = config.model.vision, config.training
    tower, mergers = "vision" not in training.freeze, "merger" not in training.freeze
    if not (tower or mergers):
        return RowBytes(0.0, 0.0)
    precision = PRECISIONS[config.precision.dtype]
    table, value, widths = TABLES[precision.backend], precision.activation, tower_widths(config)
    levels, tokens = len(vision.deepstack_layers), load.patches / vision.merge_size**2
    merging = levels * _bytes([DEEPSTACK_MERGER], widths, value, mergers) + _bytes(
        [FINAL_MERGER], widths, value, mergers
    )
    if not tower:
        merging += levels * _bytes([UNSHARED_TAP], widths, value, True)
        return RowBytes(tokens * merging, 0.0)
    parts = [table["tower"]] + ([table["selective_tower"]] if training.recompute_vision == "selective" else [])
    fp8 = config.precision.fp8 if config.precision.fp8_vision else "none"
    layer = _bytes(parts, widths, value, True, fp8, "hidden")
    stem = _bytes([STEM], widths, value, True) + 2 * value * (vision.hidden_size // vision.num_heads)
    if training.recompute_vision == "full":
        inputs = vision.num_layers * vision.hidden_size * value
        return RowBytes(load.patches * (stem + inputs) + tokens * merging, load.patches * layer)
    return RowBytes(load.patches * (stem + vision.num_layers * layer) + tokens * merging, 0.0)


def decoder_widths(config: RunConfig) -> dict[str, float]:
    """Return the widths of a decoder layer for each token that a rank holds between layers.

    Tensor ranks hold 1 / tensor of the tokens in full width there, or all of them in 1 / tensor of the width, which is
    the same number.
    """
    model = config.model
    return {
        "hidden": model.hidden_size,
        "query": model.num_heads * model.head_dim,
        "key": model.num_kv_heads * model.head_dim,
        "mlp": model.ffn_hidden_size,
        "routed_hidden": model.experts_per_token * model.hidden_size,
        "routed_mlp": model.experts_per_token * model.expert_ffn_hidden_size,
        "heads": model.num_heads,
        "kv_heads": model.num_kv_heads,
        "experts": model.num_experts,
        "chosen": model.experts_per_token,
        "one": 1,
    }


def tower_widths(config: RunConfig) -> dict[str, float]:
    """Return the widths of tower layers and stem for each patch, of mergers for each merged token."""
    vision = config.model.vision
    return {
        "hidden": vision.hidden_size,
        "mlp": vision.ffn_hidden_size,
        "heads": vision.num_heads,
        "pixels": vision.patch_dim,
        "merged": vision.merged_size,
        "norms": vision.merge_size**2,
        "one": 1,
    }


def _bytes(
    parts: list[Kept], widths: Mapping[str, float], value: int, trained: bool, fp8: str = "none", projected: str = ""
) -> float:
    """Bytes that parts of a layer keep for one token.

    Args:
        parts: what is kept.
        widths: of every name in them.
        value: bytes of an activation.
        trained: whether the weights are.
        fp8: recipe that matrix inputs are kept in.
        projected: width of the input of attention's projection, which one recipe keeps twice.
    """
    input_bytes = FP8_BYTES[fp8].matrix_input if fp8 != "none" else value
    kept = 0.0
    for part in parts:
        kept += value * sum(count * widths[name] for name, count in part.values.items())
        kept += WORD * sum(count * widths[name] for name, count in part.words.items())
        if trained:
            kept += input_bytes * sum(count * widths[name] for name, count in part.inputs.items())
    if trained and fp8 != "none":
        kept += FP8_BYTES[fp8].projection_copy * widths[projected]
    return kept
