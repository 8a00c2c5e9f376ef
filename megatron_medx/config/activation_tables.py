"""What a layer keeps for its backward pass, as data: how many values of which width, for each token or patch.

Widths, by name (`activations.decoder_widths`, `activations.tower_widths`):

    hidden, query, key, mlp     width of the stream, of all query heads, of all key/value heads, of the MLP
    routed_hidden, routed_mlp   hidden and expert width, times the experts that a token is sent to
    heads, kv_heads, experts, chosen, one       so many single numbers

`torch` is what Megatron's local layers and ours (models/layers.py, models/torch_kernels.py) keep without context
parallelism, counted in fp32 by tests/unit/config/test_memory_counts.py. In bf16 on a CPU torch's own RMS norm keeps
more than ours, which no table says.

`transformer_engine` is an estimate, read in the code and not measured: TransformerEngine 2.20 (of its pytorch folder
module/layernorm_linear.py, linear.py, grouped_linear.py, ops/basic/rmsnorm.py, permutation.py, and of
attention/dot_product_attention backends.py, utils.py) under megatron-core 0.19.2 (core/fusions/fused_bias_swiglu.py,
core/transformer/attention.py). Norm and matrix are one function there that keeps input, normalized input and 1 / rms;
SwiGLU keeps its input alone; attention keeps its output once, together with the projection after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Kept:
    """Numbers that stay for the backward pass; each is width -> how many values of that width."""

    values: Mapping[str, int] = field(default_factory=dict)
    """At the precision of activations."""
    inputs: Mapping[str, int] = field(default_factory=dict)
    """The same, but only the gradients of weights read them: inputs of matrix products; none where weights are frozen.

    Transformer Engine keeps these in FP8 where it computes in FP8.
    """
    words: Mapping[str, float] = field(default_factory=dict)
    """Of 4 bytes whatever the precision: statistics of norms and softmax, indices (an int64 counts twice)."""


BALANCE = Kept(words={"chosen": 2, "experts": 1})
"""What the load-balancing loss adds to a mixture of experts: probabilities and the chosen experts."""

STEM = Kept(inputs={"pixels": 1}, words={"one": 12})
"""Patch embedding, per patch: pixels; index and weight of the four learned positions that it is interpolated from."""

FINAL_MERGER = Kept(values={"merged": 2}, inputs={"merged": 2}, words={"norms": 2})
"""Per merged token, by torch on either backend: norm, first matrix, GELU, second matrix. `norms`: of each patch."""

DEEPSTACK_MERGER = Kept(values={"merged": 1}, inputs={"merged": 2}, words={"one": 2})
"""The same for one that follows a tapped layer, whose output the tower's next layer keeps."""

UNSHARED_TAP = Kept(values={"merged": 1})
"""That output, where the tower is frozen and keeps nothing."""

IMAGE_TOKEN = Kept(values={"features": 1}, words={"one": 4})
"""Per image token that is written over its placeholder: features of all levels, two indices."""

TABLES: dict[str, dict[str, Kept]] = {
    "torch": {
        "attention": Kept(
            values={"hidden": 1, "query": 4, "key": 3},
            inputs={"hidden": 1, "query": 1},
            words={"one": 1, "heads": 2, "kv_heads": 1},
        ),
        "selective": Kept(values={"query": -1}, words={"heads": -1}),
        "mlp": Kept(values={"hidden": 1, "mlp": 2}, inputs={"hidden": 1, "mlp": 1}, words={"one": 1}),
        "experts": Kept(
            values={"hidden": 2, "routed_mlp": 3},
            inputs={"routed_hidden": 1, "routed_mlp": 1},
            words={"one": 1, "chosen": 6, "experts": 2},
        ),
        "final_norm": Kept(values={"hidden": 1}, inputs={"hidden": 1}, words={"one": 1}),
        "tower": Kept(
            values={"hidden": 8, "mlp": 1},
            inputs={"hidden": 3, "mlp": 1},
            words={"one": 4, "heads": 1},
        ),
        "selective_tower": Kept(values={"hidden": -1}, words={"heads": -1}),
    },
    "transformer_engine": {
        "attention": Kept(
            values={"hidden": 1, "query": 3, "key": 3},
            inputs={"hidden": 1},
            words={"one": 1, "heads": 2, "kv_heads": 1},
        ),
        # The checkpointed core attention is handed the value as a view, which keeps query, key and value together.
        "selective": Kept(values={"query": 1, "key": 1}, words={"heads": -1}),
        "mlp": Kept(values={"hidden": 1, "mlp": 2}, inputs={"hidden": 1, "mlp": 1}, words={"one": 1}),
        "experts": Kept(
            values={"hidden": 2, "routed_mlp": 2},
            inputs={"routed_hidden": 1, "routed_mlp": 1},
            words={"one": 1, "chosen": 5, "experts": 2},
        ),
        "final_norm": Kept(values={"hidden": 1}, inputs={"hidden": 1}, words={"one": 1}),
        "tower": Kept(
            values={"hidden": 6, "mlp": 1},
            inputs={"hidden": 2, "mlp": 1},
            words={"one": 4, "heads": 1},
        ),
        "selective_tower": Kept(values={"hidden": 2}, words={"heads": -1}),
    },
}
"""Backend -> part of the network -> what it keeps. `selective` and `selective_tower` are what recomputation of the core
attention changes; on Transformer Engine, whose attention stores no scores, it keeps more, not less."""
