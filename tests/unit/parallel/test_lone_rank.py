"""Collectives of a rank alone are left out; all others are passed on."""

from types import SimpleNamespace

import torch

from megatron_medx.parallel.lone_rank import among_others, coalesced_among_others

BUFFER = torch.arange(6.0)


def test_a_rank_alone_has_its_share_already():
    called = []
    collective = among_others(lambda *args, **kwargs: called.append((args, kwargs)))
    alone, pair = (SimpleNamespace(size=lambda size=size: size) for size in (1, 2))
    assert collective(BUFFER, BUFFER, op="sum", group=alone) is None and not called
    collective(BUFFER, BUFFER, group=alone, async_op=True).wait()
    assert not called
    collective(BUFFER[:3], BUFFER, group=pair)
    collective(torch.zeros(6), BUFFER, group=alone)  # other memory: there is something to copy
    assert len(called) == 2


def test_nothing_is_coalesced_for_a_rank_alone():
    managers = []
    manager = coalesced_among_others(lambda group, async_ops: managers.append(group) or group)
    alone, pair = (SimpleNamespace(size=lambda size=size: size) for size in (1, 2))
    with manager(alone, async_ops=True) as work:
        pass
    work.wait()
    assert not managers and manager(pair, async_ops=False) is pair
