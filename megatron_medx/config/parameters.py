"""Exact parameter counts of the Qwen3-VL architecture, by part.

Pure arithmetic over ModelConfig: no network is built, so a 32B run is counted on a laptop in
microseconds. tests/unit/config/test_parameters.py holds the counts against transformers' own
networks, dense and mixture of experts, built on the meta device.
"""

from megatron_medx.config.model import ModelConfig

PART_OF = {
    "vision": "vision",
    "merger": "merger",
    "embeddings": "language",
    "decoder": "language",
    "output": "language",
}
"""Counted piece -> the part of the network that is frozen or trained with it (`run.PARTS`)."""


def parameter_counts(model: ModelConfig) -> dict[str, int]:
    """Return the exact number of parameters of each piece: vision, merger, embeddings, decoder, output.

    The decoder includes its final norm. `output` is 0 with tied embeddings. The values sum to the
    whole network.
    """
    return {
        "vision": vision_stem_parameters(model) + model.vision.num_layers * vision_layer_parameters(model),
        "merger": main_merger_parameters(model) + len(model.vision.deepstack_layers) * deepstack_parameters(model),
        "embeddings": model.vocab_size * model.hidden_size,
        "decoder": model.num_layers * decoder_layer_parameters(model) + model.hidden_size,
        "output": 0 if model.tie_embeddings else model.vocab_size * model.hidden_size,
    }


def part_counts(model: ModelConfig) -> dict[str, int]:
    """Return the parameters of each part that can be frozen: vision, merger, language."""
    parts: dict[str, int] = {}
    for piece, count in parameter_counts(model).items():
        parts[PART_OF[piece]] = parts.get(PART_OF[piece], 0) + count
    return parts


def vision_stem_parameters(model: ModelConfig) -> int:
    """Patch embedding (a linear with bias) and learned positions."""
    vision = model.vision
    return (vision.patch_dim + 1) * vision.hidden_size + vision.num_position_embeddings * vision.hidden_size


def vision_layer_parameters(model: ModelConfig) -> int:
    """One tower layer: two LayerNorms, qkv and projection, two MLP matrices, everything with bias."""
    width, inner = model.vision.hidden_size, model.vision.ffn_hidden_size
    norms = 2 * 2 * width
    attention = (width + 1) * 3 * width + (width + 1) * width
    mlp = (width + 1) * inner + (inner + 1) * width
    return norms + attention + mlp


def main_merger_parameters(model: ModelConfig) -> int:
    """The merger after the last tower layer: its LayerNorm is over one patch, before the blocks are joined."""
    return 2 * model.vision.hidden_size + _merger_mlp(model)


def deepstack_parameters(model: ModelConfig) -> int:
    """One DeepStack merger: its LayerNorm is over a joined block of patches."""
    return 2 * model.vision.merged_size + _merger_mlp(model)


def decoder_layer_parameters(model: ModelConfig) -> int:
    """One decoder layer: matrices without bias, two RMSNorms, and a norm each for query and key heads."""
    matrices = decoder_layer_matrices(model) + router_layer_parameters(model) + expert_layer_matrices(model)
    return matrices + 2 * model.hidden_size + 2 * model.head_dim


def decoder_layer_matrices(model: ModelConfig) -> int:
    """What tensor parallelism slices of a decoder layer: the four of attention, and the three of a dense SwiGLU MLP."""
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    dense = 0 if model.is_moe else 3 * model.ffn_hidden_size
    return model.hidden_size * (2 * queries + 2 * keys + dense)


def router_layer_parameters(model: ModelConfig) -> int:
    """The router of a decoder layer, a copy on every tensor rank; 0 in a dense network."""
    return model.num_experts * model.hidden_size


def expert_layer_matrices(model: ModelConfig) -> int:
    """All experts of a decoder layer: expert parallelism deals them out whole; 0 in a dense network."""
    return model.num_experts * _expert_matrices(model)


def active_layer_matrices(model: ModelConfig) -> int:
    """What one token is multiplied with in a decoder layer: of the experts only those that its router chooses."""
    chosen = model.experts_per_token * _expert_matrices(model)
    return decoder_layer_matrices(model) + router_layer_parameters(model) + chosen


def _expert_matrices(model: ModelConfig) -> int:
    return 3 * model.hidden_size * model.expert_ffn_hidden_size


def _merger_mlp(model: ModelConfig) -> int:
    joined = model.vision.merged_size
    return (joined + 1) * joined + (joined + 1) * model.hidden_size
