"""The token with the highest logit, where ranks share a row's tokens and the vocabulary."""

from types import SimpleNamespace

import pytest
import torch

from megatron_medx.parallel import greedy
from megatron_medx.parallel.context import tokens_of_rank
from megatron_medx.parallel.greedy import greedy_tokens

CU_SEQLENS = torch.tensor([0, 8, 16], dtype=torch.int32)

AT = torch.tensor([0, 3, 7, 8, 12, 15])


class Axis(SimpleNamespace):
    """A process group: its size and this rank's place in it."""

    def size(self):
        return self.of

    def rank(self):
        return self.place


@pytest.fixture
def on_grid(monkeypatch):
    """A function: logits (S, V) and the two axes' sizes -> what each rank finds."""

    def found(logits_SV, tensor, context):
        def as_rank(place):
            tp, cp = Axis(of=tensor, place=place % tensor), Axis(of=context, place=place // tensor)
            held = tokens_of_rank(CU_SEQLENS, context, cp.rank())
            part = logits_SV[held].chunk(tensor, dim=-1)[tp.rank()]
            groups = SimpleNamespace(tp=tp, cp=cp, tp_cp=Axis(of=tensor * context, place=place))
            return greedy_tokens(part, AT, CU_SEQLENS, groups)

        offers = []
        monkeypatch.setattr(greedy.dist, "all_gather", lambda into, offered, group: offers.append(offered))
        for place in range(tensor * context):
            as_rank(place)

        def gather(into, offered, group):
            for received, offer in zip(into, offers, strict=True):
                received.copy_(offer)

        monkeypatch.setattr(greedy.dist, "all_gather", gather)
        return [as_rank(place) for place in range(tensor * context)]

    return found


@pytest.mark.parametrize(("tensor", "context"), [(1, 1), (4, 1), (1, 2), (2, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rank_finds_the_highest_logit_of_the_whole_row(tensor, context, dtype, on_grid):
    logits_SV = torch.randn(16, 12, generator=torch.Generator().manual_seed(3)).to(dtype)
    for tokens in on_grid(logits_SV, tensor, context):
        assert torch.equal(tokens, logits_SV[AT].argmax(dim=-1)) and tokens.dtype == torch.int64


@pytest.mark.parametrize(("tensor", "context"), [(1, 1), (2, 1), (4, 2)])
def test_of_equal_logits_the_lowest_id_wins(tensor, context, on_grid):
    logits_SV = torch.zeros(16, 12)
    logits_SV[:, [4, 5, 9]] = 1.0
    for tokens in on_grid(logits_SV, tensor, context):
        assert tokens.tolist() == [4] * len(AT)


def test_logits_that_are_no_numbers_still_give_a_token(on_grid):
    for tokens in on_grid(torch.full((16, 12), torch.nan), 2, 2):
        assert all(0 <= token < 12 for token in tokens.tolist())
