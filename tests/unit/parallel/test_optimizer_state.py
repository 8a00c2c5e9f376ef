"""The layout of gathered optimizer state; what it is good for: tests/distributed/test_checkpoints_across_grids.py."""

from types import SimpleNamespace

import torch

from megatron_medx.parallel.optimizer_state import with_padding


def test_values_lie_where_the_buckets_do():
    buckets = [SimpleNamespace(offset=0, numel_unpadded=3), SimpleNamespace(offset=4, numel_unpadded=2)]
    padded = with_padding(torch.tensor([1.0, 2, 3, 4, 5]), SimpleNamespace(numel=8, buckets=buckets))
    assert padded.tolist() == [1, 2, 3, 0, 4, 5, 0, 0]
