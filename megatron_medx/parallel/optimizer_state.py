"""A correction to what Megatron-Core 0.19.2 saves of the distributed optimizer, on every backend.

Gradients lie in buffers of several buckets, each padded to a multiple. For a fully reshardable checkpoint Megatron
gathers main weights and Adam's moments without that padding, then cuts them at offsets that include it: behind the
first padded bucket every parameter is saved with the values of its neighbors, and a resume reads its weights from
there. There is more than one bucket where tied embeddings span pipeline stages, and wherever gradient reduction
overlaps. Upstream: NVIDIA/Megatron-LM #5077, mended after 0.19.2.
tests/distributed/test_checkpoints_across_grids.py fails without this.
"""

import functools

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def keep_bucket_padding() -> None:
    """Make the gathered optimizer state as long as its buffer; without effect when called again."""
    original = DistributedOptimizer.get_parameter_state_dp_zero
    if hasattr(original, "keeps_bucket_padding"):
        return

    @functools.wraps(original)
    def padded(self, *args, **kwargs):
        state = original(self, *args, **kwargs)
        for index, buffer in enumerate(self.buffers if state else ()):
            for tensors in state[index].values():
                for key, tensor in tensors.items():
                    if isinstance(tensor, torch.Tensor):
                        tensors[key] = with_padding(tensor, buffer)
        return state

    padded.keeps_bucket_padding = True
    DistributedOptimizer.get_parameter_state_dp_zero = padded


def with_padding(values: torch.Tensor, buffer) -> torch.Tensor:
    """Lay the values of a buffer's buckets where the buffer has them.

    Example: buckets of 3 and 2 values, each padded to 4: a b c d e becomes a b c 0 d e 0 0.

    Args:
        values: (n,) of all buckets, without padding.
        buffer: Megatron's `_ParamAndGradBuffer`.

    Returns:
        (buffer.numel,) with zeros in the padding.
    """
    padded = values.new_zeros(buffer.numel)
    sizes = [bucket.numel_unpadded for bucket in buffer.buckets]
    for bucket, part in zip(buffer.buckets, values.split(sizes), strict=True):
        padded[bucket.offset : bucket.offset + len(part)] = part
    return padded
