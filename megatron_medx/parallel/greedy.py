"""Which token has the highest logit, where ranks share a row's tokens and the vocabulary."""

import math

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_medx.parallel.context import tokens_of_rank


def greedy_tokens(logits_LV: Tensor, at_N: Tensor, cu_seqlens: Tensor, groups: ProcessGroupCollection) -> Tensor:
    """The token with the highest logit at some positions of a row, of equal ones the lowest id; same on all its ranks.

    Collective over the ranks that share the row: one gathering of (N, 2) numbers.

    Args:
        logits_LV: (L, V/t) of the tokens that this context rank holds, of this tensor rank's part of the vocabulary.
        at_N: (N,) int64 positions in the row, on the CPU.
        cu_seqlens: (segments + 1,) borders of the row, on the CPU.
        groups: tp, cp and tp_cp, both of them together.

    Returns:
        (N,) int64 token ids, on the device of the logits.

    Example, a vocabulary of six on two tensor ranks, at one position logits 1 4 4 | 2 4 3: the ranks offer (4, 1) and
    (4, 4), so the token is 1.
    """
    held_L = tokens_of_rank(cu_seqlens, groups.cp.size(), groups.cp.rank())
    slot_S = torch.full((int(cu_seqlens[-1]),), -1)
    slot_S[held_L] = torch.arange(len(held_L))
    slots_N = slot_S[at_N]
    mine_N = slots_N >= 0
    # a position that another context rank holds is offered with a logit that loses
    offered_N2 = torch.tensor([-math.inf, 0.0], dtype=torch.float64, device=logits_LV.device).repeat(len(at_N), 1)
    logits, ids = logits_LV[slots_N[mine_N].to(logits_LV.device)].max(dim=-1)  # of equal ones the first
    ids = ids + groups.tp.rank() * logits_LV.shape[-1]
    offered_N2[mine_N.to(logits_LV.device)] = torch.stack([logits.double(), ids.double()], dim=-1)
    offers_GN2 = [torch.empty_like(offered_N2) for _ in range(groups.tp_cp.size())]
    dist.all_gather(offers_GN2, offered_N2, group=groups.tp_cp)
    logits_GN, ids_GN = torch.stack(offers_GN2).unbind(dim=-1)
    # tensor ranks follow one another in the group, so the first of equal logits has the lowest id
    return ids_GN.gather(0, logits_GN.argmax(dim=0, keepdim=True))[0].long()
