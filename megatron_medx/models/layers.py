"""Norms and core attention in plain torch, for where Transformer Engine is not installed.

They exist because Megatron's local ones refuse what this model needs: torch's norms carry no `sequence_parallel`
mark (`megatron.core.transformer.torch_norm` asserts it off), and `DotProductAttention` takes no packed rows.
"""

import math
from itertools import groupby

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import layer_norm, rms_norm, scaled_dot_product_attention

from megatron_medx.models.torch_kernels import rms_norm_cpu
from megatron_medx.parallel.context import place_in_gathered_row


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
        if not x.is_cuda and x.dtype == self.weight.dtype and x.dtype.itemsize >= 4:
            return rms_norm_cpu(x, self.weight, self.eps)
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
    """Core attention over `scaled_dot_product_attention` for packed rows: each segment attends only to itself.

    Under context parallelism each rank has the queries of its own tokens (parallel/context.py) and gathers the keys and
    values of all; the gather's backward pass sums their gradients over the ranks.
    """

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
        self.cp_group = pg_collection.cp

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
            query: (L, N, D), L tokens of this rank: S / c.
            key, value: (L, N_kv, D); N is a multiple of N_kv.
            attention_mask, attention_bias: unused, part of Megatron's interface.
            packed_seq_params: `cu_seqlens_q` holds the segment borders of the whole row, 0 first and S last.

        Returns:
            (L, N * D).
        """
        ranks = self.cp_group.size()
        borders = packed_seq_params.cu_seqlens_q
        if ranks > 1:
            order = place_in_gathered_row(borders, ranks)
            # One gather for both; on each rank only its own queries' part of the gradient arises.
            joined = gather_from_sequence_parallel_region(torch.cat((key, value), dim=1), group=self.cp_group)
            key, value = joined.index_select(0, order).chunk(2, dim=1)
        lengths = borders.diff().tolist()
        if ranks > 1:
            queries = query.split([length // ranks for length in lengths])
            segments = zip(queries, key.split(lengths), value.split(lengths), strict=True)
            return torch.cat([self._attend_two_pieces(*segment) for segment in segments]).flatten(1)
        runs = [(length, len(list(equal))) for length, equal in groupby(lengths)]
        parts = (x.split([length * number for length, number in runs]) for x in (query, key, value))
        outputs = [self._attend(*part, number) for *part, (_, number) in zip(*parts, runs, strict=True)]
        return (torch.cat(outputs) if len(outputs) > 1 else outputs[0]).flatten(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, number: int = 1, mask: Tensor | None = None) -> Tensor:
        """Segments of one length, or one piece of one: (L, N, D) queries over (L', N, D) keys, to (L, N, D).

        `number` segments, each with its share of the queries and keys, are one call: (number, N, L / number, D).
        """
        heads_first = (x.unflatten(0, (number, -1)).transpose(1, 2) for x in (query, key, value))
        grouped, is_causal = query.shape[1] != key.shape[1], self.is_causal and mask is None
        out = scaled_dot_product_attention(
            *heads_first, attn_mask=mask, is_causal=is_causal, scale=self.scale, enable_gqa=grouped
        )
        return out.transpose(1, 2).flatten(0, 1)

    def _attend_two_pieces(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One segment of which this rank has an early and a late piece of queries: each sees the keys up to itself."""
        ranks, rank = self.cp_group.size(), self.cp_group.rank()
        outputs = []
        for piece, index in zip(query.chunk(2), (rank, 2 * ranks - 1 - rank), strict=True):
            end = (index + 1) * len(piece)
            mask = causal_lower_right(len(piece), end)
            outputs.append(self._attend(piece, key[:end], value[:end], mask=mask))
        return torch.cat(outputs)
