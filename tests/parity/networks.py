"""Tiny networks twice: as stock `transformers` model and as our Megatron model with the same weights."""

import torch
import transformers
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import nested_values

from megatron_medx.checkpoint.hugging_face.hf_config import config_json
from megatron_medx.checkpoint.layout.rules import bindings
from megatron_medx.checkpoint.layout.transformations import ExpertTranspose
from megatron_medx.config.model import ModelConfig, VisionConfig
from megatron_medx.models.megatron_config import decoder_config
from megatron_medx.models.qwen3_vl import Qwen3VLModel
from megatron_medx.models.specs import layer_specs
from megatron_medx.parallel.groups import solo_groups


def tiny(
    *, heads=4, kv_heads=2, head_dim=16, section=(4, 2, 2), deepstack=(0, 2), tied=False, experts=(0, 0), aux_loss=0.0
) -> ModelConfig:
    """Four decoder and three tower layers, awkward widths; `experts` is how many there are and how many a token has."""
    return ModelConfig(
        hidden_size=44,
        num_layers=4,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_hidden_size=72,
        num_experts=experts[0],
        experts_per_token=experts[1],
        expert_ffn_hidden_size=26,
        router_aux_loss_coef=aux_loss,
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


def stock_model(model: ModelConfig) -> transformers.PreTrainedModel:
    """Random stock model in fp32; every parameter is perturbed, so no norm is 1 and no bias 0."""
    torch.manual_seed(3)
    if model.is_moe:
        config = transformers.Qwen3VLMoeConfig(**config_json(model, torch.float32, {}))
        config._experts_implementation = "eager"  # the loop of its class; its grouped kernel refuses awkward widths
        stock = transformers.Qwen3VLMoeForConditionalGeneration(config).float().eval()
    else:
        config = transformers.Qwen3VLConfig(**config_json(model, torch.float32, {}))
        stock = transformers.Qwen3VLForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return stock


def megatron_model(model: ModelConfig, groups, stock=None, **config) -> Qwen3VLModel:
    """Our model on one rank, with the stock model's weights if one is given."""
    ours = Qwen3VLModel(model, decoder_config(model, **config), layer_specs(model, False), groups, solo_groups())
    if stock is not None:
        weights = in_megatron_names(model, dict(stock.named_parameters()))
        with torch.no_grad():
            for key, parameter in parameters_by_key(ours).items():
                parameter.copy_(weights.pop(key))
        assert not weights, f"not loaded: {sorted(weights)}"
    return ours


def parameters_by_key(ours: Qwen3VLModel) -> dict[str, torch.nn.Parameter]:
    """Parameters by their checkpoint name; experts share one, so theirs end in the expert's number."""
    named = {}
    for entry in nested_values(ours.sharded_state_dict()):
        if isinstance(entry, ShardedTensor | ShardedTensorFactory):
            shard = entry if isinstance(entry, ShardedTensor) else entry.build()[0]
            expert = shard.global_offset[: shard.prepend_axis_num]
            named["/".join((entry.key, *map(str, expert)))] = entry.data
    return named


def in_megatron_names(model: ModelConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hugging Face names and layouts to ours, by the conversion rules; also for gradients.

    transformers holds experts as it saves them, [E, out, in]: the hub's layout is that with the last two swapped.
    """
    renamed = {}
    for bound in bindings(model):
        parts = [tensors[key].detach() for key in bound.hf_keys]
        if isinstance(bound.transformation, ExpertTranspose):
            (experts,) = (part.transpose(1, 2) for part in parts)
            stacked = bound.transformation.to_megatron([experts], model)
            renamed |= {f"{bound.megatron_key}/{number}": matrix for number, matrix in enumerate(stacked)}
        else:
            renamed[bound.megatron_key] = bound.transformation.to_megatron(parts, model)
    return renamed
