"""Mergers: 2x2 neighboring patches of the tower become one token of the decoder.

One merger follows the tower's last layer; DeepStack adds one after each tapped layer. Both use the exact GELU
(the tower's MLPs use the tanh approximation); mixing the two up costs 4e-4 on the logits of a tiny model.
"""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import gelu

from megatron_medx.config.model import ModelConfig


class PatchMerger(torch.nn.Module):
    """LayerNorm, then a two-layer MLP over the joined features of one merge block.

    Args:
        norm_after_join: True normalizes the joined block (DeepStack), False each patch alone (final merger).
    """

    def __init__(self, model: ModelConfig, dtype: torch.dtype, norm_after_join: bool):
        super().__init__()
        self.block_dim = model.vision.hidden_size * model.vision.merge_size**2
        self.norm_after_join = norm_after_join
        norm_dim = self.block_dim if norm_after_join else model.vision.hidden_size
        self.norm = torch.nn.LayerNorm(norm_dim, eps=1e-6, dtype=dtype)
        self.linear_fc1 = torch.nn.Linear(self.block_dim, self.block_dim, dtype=dtype)
        self.linear_fc2 = torch.nn.Linear(self.block_dim, model.hidden_size, dtype=dtype)

    def forward(self, v_PE: Tensor) -> Tensor:
        """Merge patches that are stored block by block.

        Args:
            v_PE: (P, E) features of the tower.

        Returns:
            (M, H) tokens, M = P / merge_size^2.
        """
        if not self.norm_after_join:
            v_PE = self.norm(v_PE)
        joined = v_PE.reshape(-1, self.block_dim)
        if self.norm_after_join:
            joined = self.norm(joined)
        return self.linear_fc2(gelu(self.linear_fc1(joined)))


class Mergers(torch.nn.Module):
    """The final merger and one merger per DeepStack level."""

    def __init__(self, model: ModelConfig, config: TransformerConfig):
        super().__init__()
        self.final = PatchMerger(model, config.params_dtype, norm_after_join=False)
        self.deepstack = torch.nn.ModuleList(
            PatchMerger(model, config.params_dtype, norm_after_join=True) for _ in model.vision.deepstack_layers
        )

    def forward(self, final_PE: Tensor, taps_PE: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Merge the tower's output and its taps.

        Args:
            final_PE: (P, E) output of the last layer.
            taps_PE: K tensors (P, E), outputs of the tapped layers.

        Returns:
            (M, H) image tokens and K tensors (M, H) for the first K decoder layers.
        """
        levels = [merger(tap) for merger, tap in zip(self.deepstack, taps_PE, strict=True)]
        return self.final(final_PE), levels
