"""Which modules a layer is built from: Transformer Engine where it is installed with CUDA, plain torch elsewhere.

The one place where that choice is made. Checkpoint names are the same for both: Transformer Engine fuses a norm into
the linear that follows, and the plain layers map their norms to that fused name. Before a mixture of experts there is
no linear to fuse with (the router reads the normalized tokens too), so that norm keeps a name of its own.
"""

from dataclasses import dataclass

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import BackendSpecProvider, LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megatron_medx.config.model import ModelConfig
from megatron_medx.models.layers import LayerNorm, PackedAttention, RMSNorm
from megatron_medx.models.row_rotary import use_row_rotary
from megatron_medx.models.torch_kernels import use_torch_swiglu


class TorchSpecProvider(LocalSpecProvider):
    """Megatron's local parallel linears with our norms and packed attention."""

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False, has_residual: bool = False) -> type:
        """The norm class for one use."""
        return RMSNorm if rms_norm else LayerNorm

    def core_attention(self) -> type:
        """Packed attention over torch's kernels."""
        return PackedAttention


class DeepStackLayer(TransformerLayer):
    """Decoder layer that adds its level of DeepStack features to its output.

    The features travel as Megatron's cross-attention `context` (this decoder has no cross-attention): an argument
    survives activation recomputation and interleaved pipeline chunks, an attribute set before the call would not.
    """

    def forward(self, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        """Megatron's layer forward; `context` is None or (K, S, 1, H), zero at text tokens.

        Returns:
            (S, 1, H) output and the unchanged context.
        """
        h_S1H, levels_KS1H = super().forward(*args, **kwargs)
        if levels_KS1H is not None and self.layer_number <= levels_KS1H.shape[0]:
            h_S1H = h_S1H + levels_KS1H[self.layer_number - 1]
        return h_S1H, levels_KS1H


@dataclass(frozen=True, slots=True)
class LayerSpecs:
    """The building blocks of both transformers."""

    decoder_layer: ModuleSpec
    vision_layer: ModuleSpec
    decoder_norm: type

    def vision_block(self, num_layers: int) -> TransformerBlockSubmodules:
        """The whole tower; it has no final norm, the mergers have their own."""
        return TransformerBlockSubmodules(layer_specs=[self.vision_layer] * num_layers, layer_norm=None)

    def decoder_block(self, num_layers: int) -> TransformerBlockSubmodules:
        """The layers of one pipeline stage; the final norm is built on the last stage only."""
        return TransformerBlockSubmodules(layer_specs=[self.decoder_layer] * num_layers, layer_norm=self.decoder_norm)


def transformer_engine_usable() -> bool:
    """True where Transformer Engine is installed and a GPU can run it."""
    return HAVE_TE and torch.cuda.is_available()


def layer_specs(model: ModelConfig, use_transformer_engine: bool) -> LayerSpecs:
    """Specs of decoder and tower layers, whose attention rotates whole rows (row_rotary.py).

    Args:
        model: decides whether the decoder's MLPs are mixtures of experts; the tower's never are.
        use_transformer_engine: normally `transformer_engine_usable()`.
    """
    if use_transformer_engine:
        from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

        backend = TESpecProvider()
    else:
        backend = TorchSpecProvider()
        use_torch_swiglu()
    use_row_rotary()
    decoder = {"rms_norm": True, "qk_norm": True, "num_experts": model.num_experts}
    tower = {"rms_norm": False, "qk_norm": False, "num_experts": 0}
    return LayerSpecs(
        decoder_layer=_layer(backend, DeepStackLayer, AttnMaskType.causal, **decoder),
        vision_layer=_layer(backend, TransformerLayer, AttnMaskType.no_mask, **tower),
        decoder_norm=backend.layer_norm(rms_norm=True),
    )


def _layer(
    backend: BackendSpecProvider,
    layer: type,
    mask: AttnMaskType,
    *,
    rms_norm: bool,
    qk_norm: bool,
    num_experts: int,
) -> ModuleSpec:
    """Pre-norm transformer layer: attention and MLP (or mixture of experts), each with a residual."""
    fused = backend.fuse_layernorm_and_linear()
    norm = backend.layer_norm(rms_norm=rms_norm)
    head_norm = backend.layer_norm(rms_norm=rms_norm, for_qk=True) if qk_norm else IdentityOp
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": mask},
        submodules=SelfAttentionSubmodules(
            linear_qkv=backend.column_parallel_layer_norm_linear() if fused else backend.column_parallel_linear(),
            core_attention=backend.core_attention(),
            linear_proj=backend.row_parallel_linear(),
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )
    # Grouped GEMM runs all experts of a rank at once; it is Transformer Engine's, plain torch takes them in turn.
    mlp = get_mlp_module_spec_for_backend(backend=backend, num_experts=num_experts or None, moe_grouped_gemm=fused)
    fused_names = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if not num_experts:
        fused_names["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    submodules = TransformerLayerSubmodules(
        input_layernorm=IdentityOp if fused else norm,
        self_attention=attention,
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=IdentityOp if fused and not num_experts else norm,
        mlp=mlp,
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={} if fused else fused_names,
    )
    return ModuleSpec(module=layer, submodules=submodules)
