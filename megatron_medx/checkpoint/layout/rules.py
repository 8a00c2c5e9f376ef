"""Which Hugging Face tensors are which Megatron tensor: three tables, read in both directions.

`bindings(model)` multiplies the tables out for one network; the engine walks the result and so touches every key
once. `check_total` stops when a directory holds a key that no rule names, or lacks one, or has another shape.
Only names and shapes live here; layout changes are in `transformations.py`.

Shapes are written with one letter a dimension (see `dimensions`): H hidden, F MLP width, Q and K rows of the query
and key projections, D head size, V vocabulary; h and f the tower's hidden and MLP width, M merged width, P positions;
C channels, T frames, S patch side; E experts, I width of one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.layout.transformations import (
    Copy,
    ExpertTranspose,
    GateUp,
    PatchEmbed,
    QkvInterleave,
    Shape,
    Transformation,
    VisionQkv,
)
from megatron_medx.config.model import ModelConfig
from megatron_medx.errors import CheckpointError

NAMES_SHOWN = 8
"""Keys listed in an error before the rest is counted."""


def always(model: ModelConfig) -> bool:
    """Every network."""
    return True


def untied(model: ModelConfig) -> bool:
    """Networks whose output layer has a weight of its own."""
    return not model.tie_embeddings


def dense(model: ModelConfig) -> bool:
    """Networks with one MLP a decoder layer."""
    return not model.is_moe


def mixture_of_experts(model: ModelConfig) -> bool:
    """Networks with router and experts in every decoder layer."""
    return model.is_moe


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a table. `*` stands for the layer or DeepStack index on both sides."""

    hf: tuple[str, ...]
    """Keys on the Hugging Face side, in the transformation's order."""
    shapes: tuple[str, ...]
    """Their shapes, a letter per dimension; `3h` is three times h."""
    megatron: str
    """Key on the Megatron side."""
    transformation: Transformation
    where: Callable[[ModelConfig], bool] = always
    """Networks that have these tensors."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A rule with its index filled in: the unit that the engine reads and writes at once."""

    hf_keys: tuple[str, ...]
    hf_shapes: tuple[Shape, ...]
    megatron_key: str
    megatron_shape: Shape
    transformation: Transformation


def _copy(hf: str, shape: str, megatron: str, **more) -> Rule:
    return Rule((hf,), (shape,), megatron, Copy(), **more)


_DECODER_HF = "model.language_model.layers.*."
_DECODER = "decoder.layers.*."
_MLP_NORM_HF = f"{_DECODER_HF}post_attention_layernorm.weight"
_TOWER_HF = "model.visual.blocks.*."
_TOWER = "vision.encoder.layers.*."
_LAYERED = ("decoder.", "vision.encoder.")

DECODER_RULES = (
    _copy("model.language_model.embed_tokens.weight", "VH", "embedding.word_embeddings.weight"),
    _copy(f"{_DECODER_HF}input_layernorm.weight", "H", f"{_DECODER}self_attention.linear_qkv.layer_norm_weight"),
    Rule(
        tuple(f"{_DECODER_HF}self_attn.{name}_proj.weight" for name in "qkv"),
        ("QH", "KH", "KH"),
        f"{_DECODER}self_attention.linear_qkv.weight",
        QkvInterleave(),
    ),
    _copy(f"{_DECODER_HF}self_attn.q_norm.weight", "D", f"{_DECODER}self_attention.q_layernorm.weight"),
    _copy(f"{_DECODER_HF}self_attn.k_norm.weight", "D", f"{_DECODER}self_attention.k_layernorm.weight"),
    _copy(f"{_DECODER_HF}self_attn.o_proj.weight", "HQ", f"{_DECODER}self_attention.linear_proj.weight"),
    _copy(_MLP_NORM_HF, "H", f"{_DECODER}mlp.linear_fc1.layer_norm_weight", where=dense),
    Rule(
        (f"{_DECODER_HF}mlp.gate_proj.weight", f"{_DECODER_HF}mlp.up_proj.weight"),
        ("FH", "FH"),
        f"{_DECODER}mlp.linear_fc1.weight",
        GateUp(),
        where=dense,
    ),
    _copy(f"{_DECODER_HF}mlp.down_proj.weight", "HF", f"{_DECODER}mlp.linear_fc2.weight", where=dense),
    _copy(_MLP_NORM_HF, "H", f"{_DECODER}pre_mlp_layernorm.weight", where=mixture_of_experts),
    _copy(f"{_DECODER_HF}mlp.gate.weight", "EH", f"{_DECODER}mlp.router.weight", where=mixture_of_experts),
    Rule(
        (f"{_DECODER_HF}mlp.experts.gate_up_proj",),
        ("EH2I",),
        f"{_DECODER}mlp.experts.experts.linear_fc1.weight",
        ExpertTranspose(),
        where=mixture_of_experts,
    ),
    Rule(
        (f"{_DECODER_HF}mlp.experts.down_proj",),
        ("EIH",),
        f"{_DECODER}mlp.experts.experts.linear_fc2.weight",
        ExpertTranspose(),
        where=mixture_of_experts,
    ),
    _copy("model.language_model.norm.weight", "H", "decoder.final_layernorm.weight"),
    _copy("lm_head.weight", "VH", "output_layer.weight", where=untied),
)

VISION_RULES = (
    Rule(("model.visual.patch_embed.proj.weight",), ("hCTSS",), "vision.patch_embed.weight", PatchEmbed()),
    _copy("model.visual.patch_embed.proj.bias", "h", "vision.patch_embed.bias"),
    _copy("model.visual.pos_embed.weight", "Ph", "vision.pos_embed.weight"),
    _copy(f"{_TOWER_HF}norm1.weight", "h", f"{_TOWER}self_attention.linear_qkv.layer_norm_weight"),
    _copy(f"{_TOWER_HF}norm1.bias", "h", f"{_TOWER}self_attention.linear_qkv.layer_norm_bias"),
    Rule((f"{_TOWER_HF}attn.qkv.weight",), ("3hh",), f"{_TOWER}self_attention.linear_qkv.weight", VisionQkv()),
    Rule((f"{_TOWER_HF}attn.qkv.bias",), ("3h",), f"{_TOWER}self_attention.linear_qkv.bias", VisionQkv()),
    _copy(f"{_TOWER_HF}attn.proj.weight", "hh", f"{_TOWER}self_attention.linear_proj.weight"),
    _copy(f"{_TOWER_HF}attn.proj.bias", "h", f"{_TOWER}self_attention.linear_proj.bias"),
    _copy(f"{_TOWER_HF}norm2.weight", "h", f"{_TOWER}mlp.linear_fc1.layer_norm_weight"),
    _copy(f"{_TOWER_HF}norm2.bias", "h", f"{_TOWER}mlp.linear_fc1.layer_norm_bias"),
    _copy(f"{_TOWER_HF}mlp.linear_fc1.weight", "fh", f"{_TOWER}mlp.linear_fc1.weight"),
    _copy(f"{_TOWER_HF}mlp.linear_fc1.bias", "f", f"{_TOWER}mlp.linear_fc1.bias"),
    _copy(f"{_TOWER_HF}mlp.linear_fc2.weight", "hf", f"{_TOWER}mlp.linear_fc2.weight"),
    _copy(f"{_TOWER_HF}mlp.linear_fc2.bias", "h", f"{_TOWER}mlp.linear_fc2.bias"),
)


def _merger_rules(hf: str, megatron: str, norm_shape: str) -> tuple[Rule, ...]:
    """A merger: norm, linear (merged -> merged), linear (merged -> decoder width), all with biases."""
    return (
        _copy(f"{hf}norm.weight", norm_shape, f"{megatron}norm.weight"),
        _copy(f"{hf}norm.bias", norm_shape, f"{megatron}norm.bias"),
        _copy(f"{hf}linear_fc1.weight", "MM", f"{megatron}linear_fc1.weight"),
        _copy(f"{hf}linear_fc1.bias", "M", f"{megatron}linear_fc1.bias"),
        _copy(f"{hf}linear_fc2.weight", "HM", f"{megatron}linear_fc2.weight"),
        _copy(f"{hf}linear_fc2.bias", "H", f"{megatron}linear_fc2.bias"),
    )


# The last merger normalizes single patches, the DeepStack ones the merged 2x2 block: the shapes differ.
MERGER_RULES = _merger_rules("model.visual.merger.", "merger.final.", "h") + _merger_rules(
    "model.visual.deepstack_merger_list.*.", "merger.deepstack.*.", "M"
)

RULES = DECODER_RULES + VISION_RULES + MERGER_RULES


def dimensions(model: ModelConfig) -> dict[str, int]:
    """What each letter of a rule's shape means for this network."""
    vision = model.vision
    return {
        "V": model.vocab_size,
        "H": model.hidden_size,
        "F": model.ffn_hidden_size,
        "Q": model.num_heads * model.head_dim,
        "K": model.num_kv_heads * model.head_dim,
        "D": model.head_dim,
        "h": vision.hidden_size,
        "f": vision.ffn_hidden_size,
        "M": vision.hidden_size * vision.merge_size**2,
        "P": vision.num_position_embeddings,
        "C": vision.in_channels,
        "T": vision.temporal_patch_size,
        "S": vision.patch_size,
        "E": model.num_experts,
        "I": model.expert_ffn_hidden_size,
    }


def bindings(model: ModelConfig, rules: Iterable[Rule] = RULES) -> tuple[Binding, ...]:
    """Every tensor group of a network, in the order of the tables, layer by layer."""
    repeats = {_DECODER: model.num_layers, _TOWER: model.vision.num_layers}
    repeats["merger.deepstack.*."] = len(model.vision.deepstack_layers)
    sizes = dimensions(model)
    bound = []
    for rule in rules:
        if not rule.where(model):
            continue
        hf_shapes = tuple(_shape(text, sizes) for text in rule.shapes)
        prefix = rule.megatron[: rule.megatron.find("*") + 2] if "*" in rule.megatron else None
        for index in range(repeats[prefix] if prefix else 1):
            bound.append(
                Binding(
                    tuple(key.replace("*", str(index)) for key in rule.hf),
                    hf_shapes,
                    rule.megatron.replace("*", str(index)),
                    rule.transformation.megatron_shape(hf_shapes),
                    rule.transformation,
                )
            )
    return tuple(bound)


def _shape(text: str, sizes: Mapping[str, int]) -> Shape:
    """Read `3hh` as (3 * h, h)."""
    shape, factor = [], 1
    for letter in text:
        if letter.isdigit():
            factor = int(letter)
        else:
            shape.append(factor * sizes[letter])
            factor = 1
    return tuple(shape)


def hf_shapes(bound: Iterable[Binding]) -> dict[str, Shape]:
    """Every Hugging Face key of a network with its shape."""
    return {key: shape for one in bound for key, shape in zip(one.hf_keys, one.hf_shapes, strict=True)}


def megatron_shapes(bound: Iterable[Binding]) -> dict[str, Shape]:
    """Every Megatron key of a network with its shape."""
    return {one.megatron_key: one.megatron_shape for one in bound}


def extra_state_modules(bound: Iterable[Binding]) -> dict[str, int]:
    """Modules whose `_extra_state` Megatron asks a checkpoint for, though nothing is in it without FP8.

    Its parallel linears have one each; Transformer Engine's norms and core attention have one too. A key that the
    checkpoint lacks stops Megatron's load, one that it has too many does not: so all that can occur are named.

    Returns:
        Module -> how many of them share the name: the experts of a layer do, all other modules are alone.
    """
    modules = {"output_layer": 1}  # tied networks have the module, without a weight
    for one in bound:
        if one.megatron_key.startswith(_LAYERED):
            name = one.megatron_key.rpartition(".")[0]
            stacked = isinstance(one.transformation, ExpertTranspose)
            modules[name] = one.megatron_shape[0] if stacked else 1
            modules.setdefault(name.replace("linear_qkv", "core_attention"), 1)
    return dict(sorted(modules.items()))


def check_total(expected: Mapping[str, Shape], found: Mapping[str, TensorSpec], where: str) -> None:
    """Stop unless a directory holds exactly the expected keys in the expected shapes.

    Args:
        expected: key -> shape by the rules.
        found: what the directory's headers say.
        where: the directory, for the message.
    Raises:
        CheckpointError: a tensor would be lost, invented or misread; the message names the keys and both shapes.
    """
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    wrong = [
        f"{key} {list(found[key].shape)} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key].shape) != shape
    ]
    if not (missing or extra or wrong):
        return
    parts = (("missing", missing), ("not known", extra), ("of another shape", wrong))
    raise CheckpointError(
        f"in {where}: " + "; ".join(f"{len(names)} tensors {what}: {_listed(names)}" for what, names in parts if names),
        f"exactly the {len(expected)} tensors that its configuration describes, each once",
        _advice(missing, extra),
    )


def _advice(missing: list[str], extra: list[str]) -> str:
    """What to do about wrong keys; contradictory ties and Megatron's stacked layers have remedies of their own."""
    if any(key.startswith("decoder.layers.self_attention.") for key in extra):
        return "save the checkpoint with one entry per layer (hetereogenous_dist_checkpoint); here layers are stacked"
    output_keys = {"lm_head.weight", "output_layer.weight"}
    if output_keys & {*missing, *extra}:
        return "check tie_word_embeddings (model.tie_embeddings): tied networks store no output layer, others must"
    return "check that the configuration belongs to these weights (a Qwen3-VL) and that the copy is complete"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
