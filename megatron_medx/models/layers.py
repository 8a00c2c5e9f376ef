"""Norms and core attention in plain torch, for where Transformer Engine is not installed.

They exist because Megatron's local ones refuse what this model needs: torch's norms carry no `sequence_parallel`
mark (`megatron.core.transformer.torch_norm` asserts it off), and `DotProductAttention` takes no packed rows.
"""

import math

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm, scaled_dot_product_attention


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm over the last dimension; its weight says whether its gradient is a partial sum."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Under sequence parallelism each rank sees only its tokens, so Megatron sums this gradient over them.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` (..., hidden_size); same shape and dtype."""
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNorm(torch.nn.Module):
    """Layer norm with bias over the last dimension, marked like `RMSNorm`."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.bias = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = self.bias.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` (..., hidden_size); same shape and dtype."""
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class PackedAttention(MegatronModule):
    """Core attention over `scaled_dot_product_attention` for packed rows: each segment attends only to itself."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ):
        super().__init__(config)
        self.is_causal = attn_mask_type == AttnMaskType.causal
        self.scale = softmax_scale if softmax_scale is not None else 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend within each segment of the row.

        Args:
            query: (S, N, D).
            key, value: (S, N_kv, D); N is a multiple of N_kv.
            attention_mask, attention_bias: unused, part of Megatron's interface.
            packed_seq_params: `cu_seqlens_q` holds the segment borders, 0 first and S last.

        Returns:
            (S, N * D).
        """
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            # torch's CPU flash kernel takes equal head counts only; its grouped path materializes all scores.
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        segments = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
        outputs = [self._attend(*segment) for segment in segments]
        return torch.cat(outputs).flatten(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One segment: (L, N, D) each, to (L, N, D)."""
        heads_first = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        out = scaled_dot_product_attention(*heads_first, is_causal=self.is_causal, scale=self.scale)
        return out.squeeze(0).transpose(0, 1)
