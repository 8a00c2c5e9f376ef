"""Tiny networks twice: as stock `transformers` model and as our Megatron model with the same weights."""

import torch
import transformers
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import nested_values

from megatron_medx.checkpoint.hf_config import config_json
from megatron_medx.checkpoint.rules import bindings
from megatron_medx.config.model import ModelConfig, VisionConfig
from megatron_medx.models.megatron_config import decoder_config
from megatron_medx.models.qwen3_vl import Qwen3VLModel
from megatron_medx.models.specs import layer_specs
from megatron_medx.parallel.groups import solo_groups


def tiny(*, heads=4, kv_heads=2, head_dim=16, section=(4, 2, 2), deepstack=(0, 2), tied=False) -> ModelConfig:
    """Four decoder and three tower layers, awkward widths."""
    return ModelConfig(
        hidden_size=44,
        num_layers=4,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_hidden_size=72,
        vocab_size=160,
        mrope_section=section,
        tie_embeddings=tied,
        max_positions=512,
        image_token_id=150,
        video_token_id=151,
        vision_start_token_id=152,
        vision_end_token_id=153,
        vision=VisionConfig(
            hidden_size=48,
            num_layers=3,
            num_heads=3,
            ffn_hidden_size=60,
            deepstack_layers=deepstack,
            patch_size=4,
            num_position_embeddings=49,
        ),
    )


def stock_model(model: ModelConfig) -> transformers.Qwen3VLForConditionalGeneration:
    """Random stock model in fp32; every parameter is perturbed, so no norm is 1 and no bias 0."""
    torch.manual_seed(3)
    config = transformers.Qwen3VLConfig(**config_json(model, torch.float32, {}))
    stock = transformers.Qwen3VLForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return stock


def megatron_model(model: ModelConfig, groups, stock=None, **config) -> Qwen3VLModel:
    """Our model on one rank, with the stock model's weights if one is given."""
    ours = Qwen3VLModel(model, decoder_config(model, **config), layer_specs(False), groups, solo_groups())
    if stock is not None:
        weights = in_megatron_names(model, dict(stock.named_parameters()))
        with torch.no_grad():
            for key, parameter in parameters_by_key(ours).items():
                parameter.copy_(weights.pop(key))
        assert not weights, f"not loaded: {sorted(weights)}"
    return ours


def parameters_by_key(ours: Qwen3VLModel) -> dict[str, torch.nn.Parameter]:
    """Parameters by their checkpoint name."""
    entries = nested_values(ours.sharded_state_dict())
    return {entry.key: entry.data for entry in entries if isinstance(entry, ShardedTensor | ShardedTensorFactory)}


def in_megatron_names(model: ModelConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hugging Face names and layouts to ours, by the conversion rules; also for gradients."""
    return {
        bound.megatron_key: bound.transformation.to_megatron([tensors[key].detach() for key in bound.hf_keys], model)
        for bound in bindings(model)
    }
