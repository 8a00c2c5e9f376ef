"""ModelConfig to Megatron's TransformerConfig, for decoder and tower.

`decoder_architecture` is everything of the decoder's configuration that the architecture decides. Precision, grid and
schedule come from the caller; the tower inherits precision and recomputation from the decoder's configuration.
"""

import copy
import functools
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_medx.config.model import ModelConfig

tanh_gelu = functools.partial(torch.nn.functional.gelu, approximate="tanh")


def decoder_architecture(model: ModelConfig) -> dict[str, Any]:
    """Fields of TransformerConfig that are facts about the Qwen3 decoder."""
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_heads,
        "num_query_groups": model.num_kv_heads,
        "kv_channels": model.head_dim,
        "ffn_hidden_size": model.ffn_hidden_size,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.rms_norm_eps,
        "qk_layernorm": True,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "rotary_interleaved": False,
    } | _mixture_of_experts(model)


def _mixture_of_experts(model: ModelConfig) -> dict[str, Any]:
    """The part of the architecture that a dense decoder lacks."""
    if not model.is_moe:
        return {"num_moe_experts": None}
    return {
        "num_moe_experts": model.num_experts,
        "moe_router_topk": model.experts_per_token,
        "moe_ffn_hidden_size": model.expert_ffn_hidden_size,
        "moe_router_score_function": "softmax",
        # The softmax over the chosen experts' logits is the softmax over all of them, scaled to sum to 1.
        "moe_router_pre_softmax": False,
        "moe_router_load_balancing_type": "aux_loss" if model.router_aux_loss_coef else "none",
        "moe_aux_loss_coeff": model.router_aux_loss_coef,
        "moe_router_dtype": "fp32",
    }


def decoder_config(model: ModelConfig, **settings: Any) -> TransformerConfig:
    """The decoder's configuration outside a training run (training derives its own from Megatron's arguments).

    Args:
        model: sizes.
        settings: other fields of TransformerConfig; they win.
    """
    defaults = {
        "use_cpu_initialization": True,
        "perform_initialization": False,  # weights come from a checkpoint or from initial_weights.py
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": True,  # of SwiGLU, in any backend
        "persist_layer_norm": False,
        "apply_rope_fusion": False,
        "hetereogenous_dist_checkpoint": True,  # layers are numbered in checkpoint names
        "moe_token_dispatcher_type": "alltoall",
        "expert_tensor_parallel_size": 1,  # experts are narrow: they are dealt to ranks, never sliced
    }
    return TransformerConfig(**decoder_architecture(model) | defaults | settings)


RECOMPUTE = {
    "none": {"recompute_granularity": None, "recompute_method": None, "recompute_num_layers": None},
    "selective": {"recompute_granularity": "selective", "recompute_method": None, "recompute_num_layers": None},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
"""Our names of activation recomputation -> Megatron's settings; `selective` recomputes the core attention."""


def tower_config(
    model: ModelConfig, decoder: TransformerConfig, recompute: str = "none", in_fp8: bool = False
) -> TransformerConfig:
    """Configuration of the vision tower beside a decoder's: one stage, not sliced, same precision.

    The decoder's configuration is complete (Megatron has derived and checked its fields), so it is copied and the
    facts of the tower are written over it.

    Args:
        recompute: one of RECOMPUTE.
        in_fp8: its layers compute in FP8 as the decoder's do, all of them; otherwise in bf16.
    """
    config = copy.copy(decoder)
    facts = {
        "num_layers": model.vision.num_layers,
        "hidden_size": model.vision.hidden_size,
        "num_attention_heads": model.vision.num_heads,
        "num_query_groups": model.vision.num_heads,
        "kv_channels": model.vision.hidden_size // model.vision.num_heads,
        "ffn_hidden_size": model.vision.ffn_hidden_size,
        "normalization": "LayerNorm",
        "layernorm_epsilon": 1e-6,
        "qk_layernorm": False,
        "gated_linear_unit": False,
        "activation_func": tanh_gelu,
        "bias_activation_fusion": False,  # Megatron fuses SwiGLU and the exact GELU, and refuses others
        "add_bias_linear": True,
        "add_qkv_bias": True,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "context_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "num_moe_experts": None,
        "sequence_parallel": False,
        "pipeline_model_parallel_layout": None,
        "num_layers_in_first_pipeline_stage": None,
        "num_layers_in_last_pipeline_stage": None,
        "recompute_modules": ["core_attn"],
        "fp8": decoder.fp8 if in_fp8 else None,
        "first_last_layers_bf16": False,  # these numbers are of decoder layers
    }
    facts |= RECOMPUTE[recompute]
    for name, value in facts.items():
        assert hasattr(config, name), f"TransformerConfig of this megatron-core has no field {name}"
        setattr(config, name, value)
    return config
