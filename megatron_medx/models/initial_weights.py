"""Initial weights as a function of (seed, parameter name), never of the grid.

Each rank fills its slices of tensors that are defined for the whole model, so a run from scratch has the same losses on
every grid. The name is the checkpoint's name of the tensor, which no grid changes.
"""

import hashlib
import math

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import nested_values
from torch import Tensor

from megatron_medx.config.model import ModelConfig
from megatron_medx.models.qwen3_vl import Qwen3VLModel

STD = 0.02
"""Standard deviation of embeddings and input projections (Qwen3's initializer_range)."""

BLOCK_ROWS = 1024
"""Rows drawn from one generator; a rank draws only the blocks that its slice touches."""


@torch.no_grad()
def set_initial_weights(stage: Qwen3VLModel, seed: int) -> None:
    """Fill every parameter of a pipeline stage, in place.

    Args:
        stage: freshly built stage; what its parameters hold is overwritten.
        seed: seed of the run.
    """
    unfilled = {id(parameter): name for name, parameter in stage.named_parameters()}
    for entry in nested_values(stage.sharded_state_dict()):
        if isinstance(entry, ShardedTensorFactory):
            shards = list(nested_values(entry.build()))
        else:
            shards = [entry] if isinstance(entry, ShardedTensor) else []
        for shard in shards:
            shard.data.copy_(initial_slice(shard, seed, stage.sizes))
        if shards:
            unfilled.pop(id(entry.data), None)
    assert not unfilled, f"parameters without a checkpoint entry were not initialized: {sorted(unfilled.values())}"


def initial_slice(shard: ShardedTensor, seed: int, model: ModelConfig) -> Tensor:
    """The slice of the whole tensor that `shard` describes, float32, shape `shard.local_shape`.

    An expert's matrix is a whole tensor of its own, named by the expert's number (in the checkpoint the experts of a
    layer are stacked: `global_shape` and `global_offset` have that axis in front, `local_shape` does not).
    """
    stacked = shard.prepend_axis_num
    name = "/".join((shard.key, *map(str, shard.global_offset[:stacked])))
    shape, offset = shard.global_shape[stacked:], shard.global_offset[stacked:]
    std = initial_std(shard.key, len(shape), model)
    if std is None:
        constant = 1.0 if shard.key.endswith("weight") else 0.0
        return torch.full(shard.local_shape, constant)
    start, rows = offset[0], shard.local_shape[0]
    blocks = []
    for block in range(start // BLOCK_ROWS, math.ceil((start + rows) / BLOCK_ROWS)):
        first = block * BLOCK_ROWS
        height = min(BLOCK_ROWS, shape[0] - first)
        drawn = torch.randn(height, *shape[1:], generator=_generator(seed, name, block))
        blocks.append(drawn[max(start - first, 0) : start + rows - first])
    columns = tuple(slice(o, o + n) for o, n in zip(offset[1:], shard.local_shape[1:], strict=True))
    return torch.cat(blocks)[(slice(None), *columns)] * std


def initial_std(key: str, num_dims: int, model: ModelConfig) -> float | None:
    """Standard deviation of a tensor, None for norms and biases (weight 1, bias 0).

    Projections back into the residual stream are drawn smaller, by sqrt(2 x layers) (Megatron's scaled init).
    """
    if num_dims == 1:
        return None
    if key.endswith(("linear_proj.weight", "mlp.linear_fc2.weight", "experts.linear_fc2.weight")):
        num_layers = model.vision.num_layers if key.startswith("vision.") else model.num_layers
        return STD / math.sqrt(2 * num_layers)
    return STD


def _generator(seed: int, name: str, block: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}/{block}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
