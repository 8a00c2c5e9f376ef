"""The published dense sizes of Qwen3-VL, as data.

Sources: transformers' defaults for the large tower, vocabulary and token ids; Qwen3's widths, depths and
MLP sizes, and the small tower, from memory. tests/recipes holds each size's total against the published one
(also from memory, three digits), which a wrong width, depth or vocabulary would break. Totals do not fix
the numbers of heads of the towers, the DeepStack layers' positions and the M-RoPE sections: check these against a
real config.json before training from published weights.
"""

from megatron_medx.config.model import ModelConfig, VisionConfig

QWEN_VOCAB_SIZE = 151936
"""Embedding rows of all Qwen3 models; ids 151,669 and up name no token."""


def small_tower() -> VisionConfig:
    """Tower of 2B and 4B, 0.3 B parameters: from memory, and the totals of both models fit."""
    return VisionConfig(
        hidden_size=1024, num_layers=24, num_heads=16, ffn_hidden_size=4096, deepstack_layers=(5, 11, 17)
    )


def large_tower() -> VisionConfig:
    """Tower of 8B and 32B, SigLIP2-so400m's shape: the defaults of transformers' Qwen3VLVisionConfig."""
    return VisionConfig(
        hidden_size=1152, num_layers=27, num_heads=16, ffn_hidden_size=4304, deepstack_layers=(8, 16, 24)
    )


def _qwen3_vl(vision: VisionConfig, **sizes: object) -> ModelConfig:
    """A size with what all of them share: 8 key/value heads of 128, M-RoPE 24 + 20 + 20, rope base 5e6."""
    return ModelConfig(
        **sizes,
        vision=vision,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=QWEN_VOCAB_SIZE,
        mrope_section=(24, 20, 20),
    )


def qwen3_vl_2b() -> ModelConfig:
    """Qwen3-VL-2B: 2.13 B parameters, tied embeddings."""
    return _qwen3_vl(
        small_tower(), hidden_size=2048, num_layers=28, num_heads=16, ffn_hidden_size=6144, tie_embeddings=True
    )


def qwen3_vl_4b() -> ModelConfig:
    """Qwen3-VL-4B: 4.44 B parameters, tied embeddings."""
    return _qwen3_vl(
        small_tower(), hidden_size=2560, num_layers=36, num_heads=32, ffn_hidden_size=9728, tie_embeddings=True
    )


def qwen3_vl_8b() -> ModelConfig:
    """Qwen3-VL-8B: 8.77 B parameters, an output layer of its own."""
    return _qwen3_vl(large_tower(), hidden_size=4096, num_layers=36, num_heads=32, ffn_hidden_size=12288)


def qwen3_vl_32b() -> ModelConfig:
    """Qwen3-VL-32B: 33.4 B parameters, an output layer of its own."""
    return _qwen3_vl(large_tower(), hidden_size=5120, num_layers=64, num_heads=64, ffn_hidden_size=25600)
