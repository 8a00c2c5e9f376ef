"""The published sizes of Qwen3-VL, as data: four dense ones and two mixtures of experts.

No hub was at hand. Widths, depths and numbers of heads were checked in 2026-11 against copies of the hub's values in
public places, two for each size; tests/recipes/test_published_sizes.py holds them in the words of config.json:

    2B          torchtitan [1]; a config that a server printed, xorbitsai/inference#4592
    4B          decoder: what llama.cpp printed, ggml-org/llama.cpp#17345; a commit of hub EricB/tmp that replaces the
                4B's config.json by the 2B's. Tower: xtuner [2]. Tied embeddings: Comfy-Org/ComfyUI#14298
    8B          torchtitan [1]; xtuner [2]; config.json of a fine-tuned copy, hub Steinate/Cortex
    32B         config.json of a fine-tuned copy, hub quanliang/F1, alone for the decoder's widths; layers and heads
                also leejet/stable-diffusion.cpp#1910
    30B-A3B     torchtitan [1]; metadata of ollama's qwen3-vl:30b
    235B-A22B   torchtitan [1]; a shortened config.json, ai-dynamo/aiconfigurator [3]

    [1] pytorch/torchtitan, torchtitan/experiments/qwen3_vl/__init__.py
    [2] InternLM/xtuner, xtuner/v1/model/compose/qwen3_vl/qwen3_vl_config.py
    [3] src/aiconfigurator/model_configs/Qwen--Qwen3-VL-235B-A22B-Thinking_config.json

Which tower a size has is also told by huggingface/pytorch-image-models#2765, the ids of the image tokens by [2]. One
source disagrees: [3] has patch_size 14 where all others, transformers' default included, have 16. The weight of the
router's auxiliary loss stands in no config.json of a Qwen3-VL: 0.001 is transformers' default.
"""

from megatron_medx.config.model import ModelConfig, VisionConfig

QWEN_VOCAB_SIZE = 151936
"""Embedding rows of all Qwen3 models; ids 151,669 and up name no token."""


def small_tower() -> VisionConfig:
    """Tower of 2B and 4B: 0.31 B parameters without its mergers."""
    return VisionConfig(
        hidden_size=1024, num_layers=24, num_heads=16, ffn_hidden_size=4096, deepstack_layers=(5, 11, 17)
    )


def large_tower() -> VisionConfig:
    """Tower of all other sizes, SigLIP2-so400m's shape: 0.41 B parameters without its mergers."""
    return VisionConfig(
        hidden_size=1152, num_layers=27, num_heads=16, ffn_hidden_size=4304, deepstack_layers=(8, 16, 24)
    )


def _qwen3_vl(vision: VisionConfig, num_kv_heads: int = 8, **sizes: object) -> ModelConfig:
    """A size with what all of them share: heads of 128, M-RoPE 24 + 20 + 20, rope base 5e6."""
    return ModelConfig(
        **sizes,
        vision=vision,
        num_kv_heads=num_kv_heads,
        head_dim=128,
        vocab_size=QWEN_VOCAB_SIZE,
        mrope_section=(24, 20, 20),
    )


def _mixture(**sizes: object) -> ModelConfig:
    """A mixture of experts: in every layer 128, of which a token takes 8, and no shared one; 4 key/value heads."""
    return _qwen3_vl(large_tower(), num_kv_heads=4, num_experts=128, experts_per_token=8, **sizes)


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


def qwen3_vl_30b_a3b() -> ModelConfig:
    """Qwen3-VL-30B-A3B: 31.1 B parameters, of which a token of text uses 3.3 B; `ffn_hidden_size` is stated, unused."""
    return _mixture(hidden_size=2048, num_layers=48, num_heads=32, ffn_hidden_size=6144, expert_ffn_hidden_size=768)


def qwen3_vl_235b_a22b() -> ModelConfig:
    """Qwen3-VL-235B-A22B: 236 B parameters, of which a token of text uses 22 B; `ffn_hidden_size` is stated, unused."""
    return _mixture(hidden_size=4096, num_layers=94, num_heads=64, ffn_hidden_size=12288, expert_ffn_hidden_size=1536)
