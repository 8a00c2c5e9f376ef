"""Seconds that one row takes on a rank: of a decoder layer, of tower and embedding, of output layer and loss.

Comes in: the grid and what the row holds. Goes out: seconds of the forward and of the backward pass by kind of work.
Matrix products go by FLOPs over the ceiling's share, what lies between them by bytes over the memory's, messages by
bytes over the link's; nothing overlaps but what `traffic.py` says. Recomputation costs time and no model FLOPs.
"""

from typing import NamedTuple

from megatron_medx.config.flops import forward_flops
from megatron_medx.config.memory import PRECISIONS
from megatron_medx.config.parameters import decoder_layer_matrices, expert_layer_matrices, parameter_counts
from megatron_medx.config.run import RunConfig
from megatron_medx.planner.hardware import Hardware
from megatron_medx.planner.links import all_to_all_s, groups, ring_s
from megatron_medx.planner.traffic import Messages, layer_messages, output_messages, tower_messages
from megatron_medx.planner.workload import Load

ATTENTION_BACKWARD = 2.5
"""Backward over forward of a fused attention core: five matrix products, one of them recomputed, against two."""

ACCUMULATED_BYTES = {"bf16": 12, "fp32": 16}
"""Moved to add a row's gradient of a parameter to the fp32 sum: gradient written and read, sum read and written.

training/megatron_args.py switches the fusion off that would save the first two.
"""

LOGIT_BYTES = {"bf16": (38, 14), "fp32": (28, 12)}
"""Moved for a logit forward and backward by the unfused loss: copied to fp32, maximum, exponential, sum, quotient;
then the gradient in place and back in the output's precision."""


class Seconds(NamedTuple):
    """Of the two passes of a row."""

    forward: float
    backward: float


Kinds = dict[str, Seconds]
"""Kind of work -> its seconds. Kinds: see `KINDS`."""

KINDS = (
    "tower", "matrix products", "attention", "memory-bound", "output and loss", "recomputation", "host",
    "tensor", "context", "expert", "images",
)  # fmt: skip
"""Work of a row; the last four are messages along an axis."""


class RowParts(NamedTuple):
    """Seconds of what pipeline chunks are made of."""

    layer: Kinds
    """A decoder layer in `precision.dtype`."""
    fp8_layer: Kinds
    """A decoder layer in FP8; the same where `precision.fp8` is none."""
    first: Kinds
    """Tower, mergers and embedding."""
    last: Kinds
    """Output layer and loss."""


def row_parts(config: RunConfig, load: Load, hardware: Hardware) -> RowParts:
    """Return the seconds of every piece of a row."""
    layer = _layer(config, load, hardware, is_fp8=False)
    fp8 = layer if config.precision.fp8 == "none" else _layer(config, load, hardware, is_fp8=True)
    return RowParts(layer, fp8, _first(config, load, hardware), _last(config, load, hardware))


def total(kinds: Kinds) -> Seconds:
    """Return the sum of all kinds."""
    return Seconds(sum(s.forward for s in kinds.values()), sum(s.backward for s in kinds.values()))


def _layer(config: RunConfig, load: Load, hardware: Hardware, is_fp8: bool) -> Kinds:
    model, p = config.model, config.parallel
    ranks, trained = p.tensor * p.context, "language" not in config.training.freeze
    linear, core = (flops / model.num_layers for flops in forward_flops(model, [1], [])["decoder"])
    of_experts = 2 * model.experts_per_token * 3 * model.hidden_size * model.expert_ffn_hidden_size
    busiest = hardware.uneven_experts if p.expert > 1 else 1.0
    rate = _rate(config, hardware, is_fp8)
    matrices = load.slots / ranks * (linear - of_experts) / rate
    if model.is_moe:
        matrices += load.slots / ranks * of_experts * busiest / (rate * hardware.experts / hardware.matmul)
    attention = load.squares * core / ranks / (_peak(config, hardware) * hardware.attention)
    moved = load.slots / ranks * _layer_bytes(config, is_fp8) / _hbm(hardware)
    held = decoder_layer_matrices(model) / p.tensor + expert_layer_matrices(model) / p.expert
    summed = trained * held * ACCUMULATED_BYTES[config.precision.dtype] / _hbm(hardware)
    kinds = {
        "matrix products": Seconds(matrices, matrices * (1 + trained)),
        "attention": Seconds(attention, attention * ATTENTION_BACKWARD),
        "memory-bound": Seconds(moved, 2 * moved + summed),
    }
    kinds = _at_least(kinds, hardware.host_layer_s)
    messages = layer_messages(config, load)
    if config.training.recompute == "full":
        kinds["recomputation"] = Seconds(0.0, total(kinds).forward)
        messages = {axis: sent.again() for axis, sent in messages.items()}
    elif config.training.recompute == "selective":
        kinds["recomputation"] = Seconds(0.0, attention)
    return kinds | _messages(config, messages, hardware)


def _layer_bytes(config: RunConfig, is_fp8: bool) -> float:
    """Moved for a token by the forward pass of a layer between its matrix products.

    In values: both norms read and write a hidden state (4 h), both residuals read two and write one (6 h), head norms
    and rotary read and write queries and keys (4), SwiGLU reads two and writes one inner width (3). Experts add two
    permutations to and two back of k copies (about 6 k h + 2 h). FP8 reads each product's input, and writes it in one
    byte twice, once transposed.
    """
    model, value = config.model, PRECISIONS[config.precision.dtype].activation
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    inner, copies = model.ffn_hidden_size, 1
    values = 10 * model.hidden_size + 4 * (queries + keys)
    if model.is_moe:
        inner, copies = model.experts_per_token * model.expert_ffn_hidden_size, model.experts_per_token
        values += (6 * copies + 2) * model.hidden_size
    values += 3 * inner
    cast = model.hidden_size * (1 + copies) + queries + inner
    return values * value + is_fp8 * cast * (value + 2)


def _first(config: RunConfig, load: Load, hardware: Hardware) -> Kinds:
    """Tower and mergers of the rank with the most patches, then embedding and images written over it."""
    model, p, freeze = config.model, config.parallel, config.training.freeze
    vision, ranks, peak = model.vision, p.tensor * p.context, _peak(config, hardware)
    value, hbm = PRECISIONS[config.precision.dtype].activation, _hbm(hardware)
    patches, squares = _busiest_patches(load, ranks, hardware)
    block = vision.merge_size**2
    forward = forward_flops(model, [], [block])
    tower = _rate(config, hardware, config.precision.fp8_vision) * hardware.tower / hardware.matmul
    matrices = patches * forward["vision"][0] / block / tower
    mergers = patches * forward["merger"][0] / block / (peak * hardware.tower)
    attention = squares * forward["vision"][1] / block**2 / (peak * hardware.tower_attention)
    # norms, residuals and rotary of q and k move 18 widths, the activation 2 inner ones
    moved = patches * vision.num_layers * (18 * vision.hidden_size + 2 * vision.ffn_hidden_size) * value / hbm
    trained, passed = "vision" not in freeze, "vision" not in freeze or "merger" not in freeze
    again = {"none": 0.0, "selective": attention, "full": matrices + attention + moved}[
        config.training.recompute_vision
    ]
    counts = parameter_counts(model)
    summed = trained * counts["vision"] + ("merger" not in freeze) * counts["merger"]
    embedded = (2 + len(vision.deepstack_layers)) * 2 * model.hidden_size * value * load.slots / ranks / hbm
    table = ("language" not in freeze) * counts["embeddings"] / p.tensor
    sums = ACCUMULATED_BYTES[config.precision.dtype] / hbm
    backward = trained * (2 * matrices + ATTENTION_BACKWARD * attention + 2 * moved)
    backward += mergers * (passed + ("merger" not in freeze)) + summed * sums
    tower = {"tower": Seconds(matrices + mergers + attention + moved, backward)}
    kinds = _at_least(tower, vision.num_layers * hardware.host_layer_s, only_forward=not trained)
    kinds["memory-bound"] = Seconds(embedded, embedded + table * sums)
    kinds["recomputation"] = Seconds(0.0, trained * again)
    return kinds | _messages(config, tower_messages(config, load), hardware)


def _busiest_patches(load: Load, ranks: int, hardware: Hardware) -> tuple[float, float]:
    """Patches, and their squares by image, of the rank that encodes most of a row's."""
    if not load.patches:
        return 0.0, 0.0
    busiest = hardware.uneven_images * load.patches / ranks if ranks > 1 else load.patches
    patches = min(load.patches, max(busiest, load.largest_image))
    return patches, max(load.patch_squares * patches / load.patches, load.largest_image**2)


def _last(config: RunConfig, load: Load, hardware: Hardware) -> Kinds:
    model, p, dtype = config.model, config.parallel, config.precision.dtype
    ranks, trained = p.tensor * p.context, "language" not in config.training.freeze
    matrices = load.slots * forward_flops(model, [1], [])["output"][0] / ranks / _rate(config, hardware, is_fp8=False)
    moved = [load.slots * model.vocab_size / ranks * size / _hbm(hardware) for size in LOGIT_BYTES[dtype]]
    table = model.vocab_size * model.hidden_size / p.tensor
    summed = trained * table * ACCUMULATED_BYTES[dtype] / _hbm(hardware)
    kinds = {"output and loss": Seconds(matrices + moved[0], matrices * (1 + trained) + moved[1] + summed)}
    return kinds | _messages(config, output_messages(config, load), hardware)


def _messages(config: RunConfig, messages: dict[str, Messages], hardware: Hardware) -> Kinds:
    """Seconds of messages that no matrix product hides; axes of one rank have none."""
    kinds, of_axes = {}, groups(config)
    for axis, sent in messages.items():
        time_of = all_to_all_s if axis == "expert" else ring_s
        forward = time_of(sent.forward_bytes, sent.forward, of_axes[axis], hardware)
        shown = sent.backward_bytes - sent.hidden_bytes
        backward = time_of(shown, sent.backward, of_axes[axis], hardware)
        if forward or backward:
            kinds[axis] = Seconds(forward, backward)
    return kinds


def _at_least(kinds: Kinds, least_s: float, only_forward: bool = False) -> Kinds:
    """With the time in which the GPU waits because its host takes `least_s` to launch a pass."""
    found = total(kinds)
    backward = 0.0 if only_forward else max(0.0, least_s - found.backward)
    return kinds | {"host": Seconds(max(0.0, least_s - found.forward), backward)}


def _peak(config: RunConfig, hardware: Hardware) -> float:
    return hardware.fp32_flops if config.precision.dtype == "fp32" else hardware.bf16_flops


def _rate(config: RunConfig, hardware: Hardware, is_fp8: bool) -> float:
    """FLOP/s of the decoder's large matrix products."""
    if is_fp8:
        return hardware.fp8_flops * getattr(hardware, f"fp8_{config.precision.fp8}")
    return _peak(config, hardware) * hardware.matmul


def _hbm(hardware: Hardware) -> float:
    return hardware.hbm_bytes_per_s * hardware.hbm
