"""What the routers' load-balancing loss weighs beside the loss of the tokens.

Megatron's router computes, for every layer and row of T tokens, k experts a token, coef x E sum_i f_i P_i: f_i is the
share of the T k choices that fell on expert i, P_i the mean probability of expert i; 1 is balance. Its gradient is
multiplied by T, on the assumption that gradients are later divided by all tokens of the global batch. Here they are
divided by the sum of the loss weights, which is less (prompts, images and padding weigh nothing) and, averaged per
sample, another quantity altogether. So the multiplier becomes the row's own share of that sum, and the loss of a step

    sum_rows (weight of the row) (token loss of the row + sum_layers auxiliary loss of the row) / sum_rows weight

has the stated coefficient whatever is trained, and is the same on every grid.
"""

from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from torch import Tensor


def weigh_auxiliary_losses(h_L1H: Tensor, row_weight: Tensor, num_tokens: int) -> None:
    """Set the weight of all auxiliary losses that lie behind a tensor, for its backward pass.

    Megatron keeps one scale for whatever backward runs. The hook sets it when the backward pass of this microbatch
    reaches the stage: pipelined microbatches and recomputed layers each find their own.

    Args:
        h_L1H: the decoder's output on this stage.
        row_weight: () sum of the row's loss weights, over all of its ranks.
        num_tokens: tokens of the whole row, which is what Megatron multiplies by.
    """
    scale = row_weight.float() / num_tokens
    if h_L1H.requires_grad:
        h_L1H.register_hook(lambda gradient: MoEAuxLossAutoScaler.set_loss_scale(scale.clone()))
