"""What two gloo ranks do in test_conversion_torch_dist.py: Megatron's own load and save, cut as it cuts a model."""

from pathlib import Path

import torch
import torch.distributed as dist
from conversion_networks import tiny_model

from megatron_medx.checkpoint.torch_dist import COMMON_STATE

CUT_DIM_0 = ("embedding.word_embeddings.weight", "output_layer.weight", "self_attention.linear_qkv.weight")
CUT_DIM_1 = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")
SWIGLU = "mlp.linear_fc1.weight"
WORLD_SIZE = 2


def tensor_parallel_slice(key: str, whole: torch.Tensor, rank: int) -> torch.Tensor:
    """The part of a stored tensor that one of two tensor-parallel ranks must hold."""
    if not key.startswith(("decoder.layers.", "embedding.", "output_layer.")):
        return whole
    if key.endswith(SWIGLU):
        return torch.cat([half.chunk(WORLD_SIZE)[rank] for half in whole.chunk(2)])
    if key.endswith(CUT_DIM_0):
        return whole.chunk(WORLD_SIZE)[rank]
    if key.endswith(CUT_DIM_1):
        return whole.chunk(WORLD_SIZE, dim=1)[rank].contiguous()
    return whole


def sharded(key: str, part: torch.Tensor, rank: int):
    """A rank's part as Megatron describes it."""
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

    decoder = key.startswith(("decoder.layers.", "embedding.", "output_layer."))
    if decoder and key.endswith(SWIGLU):
        whole = ShardedTensor.from_rank_offsets(key, part, (0, rank, WORLD_SIZE))
        return apply_swiglu_sharded_factory(whole, ())
    if decoder and key.endswith(CUT_DIM_0):
        return ShardedTensor.from_rank_offsets(key, part, (0, rank, WORLD_SIZE))
    if decoder and key.endswith(CUT_DIM_1):
        return ShardedTensor.from_rank_offsets(key, part, (1, rank, WORLD_SIZE))
    return ShardedTensor.from_rank_offsets(key, part, replica_id=rank)


def stage_of(key: str) -> int:
    """The pipeline stage, of two, that owns a key: tower, mergers, embedding and layer 0 first, the rest last."""
    return int(key.startswith(("decoder.layers.1.", "decoder.final", "output_layer.")))


def run_rank(rank: int, store: str, converted: str, out: str) -> None:
    """Load a converted checkpoint on TP2 and save it again on TP2 and on PP2, with an optimizer beside it."""
    torch.set_num_threads(1)
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE)
    from megatron.core import dist_checkpointing

    from megatron_medx.checkpoint.torch_dist import TorchDistFolder

    stored = TorchDistFolder(Path(converted))
    empty = {
        key: sharded(key, torch.empty_like(tensor_parallel_slice(key, stored.read(key), rank)), rank)
        for key in stored.specs
    }
    loaded = dist_checkpointing.load({"model": empty}, converted)["model"]
    torch.save(loaded, Path(out) / f"loaded_{rank}.pt")
    cut = {key: sharded(key, part, rank) for key, part in loaded.items()}
    _save({"model": cut}, Path(out) / "tp2" / "iter_0000007", rank)
    stage = {key: _alone(key, stored.read(key)) for key in stored.specs if stage_of(key) == rank}
    _save({"model": stage}, Path(out) / "pp2" / "iter_0000007", rank)
    torch.save(load_into_network(converted), Path(out) / f"network_{rank}.pt")
    dist.destroy_process_group()


def load_into_network(converted: str) -> dict[str, tuple[torch.Tensor, tuple[int, ...]]]:
    """Load a converted checkpoint into the network that training builds, on two tensor-parallel ranks.

    Returns:
        Checkpoint key -> (what this rank's parameter then holds, shape of the whole tensor).
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
    from megatron.core.dist_checkpointing.utils import nested_values

    network = build_network()
    metadata = COMMON_STATE["content_metadata"]
    loaded = dist_checkpointing.load({"model": network.sharded_state_dict(metadata=metadata)}, converted)
    network.load_state_dict(loaded["model"], strict=True)
    held = {}
    for entry in nested_values(network.sharded_state_dict(metadata=metadata)):
        if isinstance(entry, ShardedTensorFactory):
            held[entry.key] = entry.data.detach(), tuple(entry.build()[0].global_shape)
        elif isinstance(entry, ShardedTensor):
            held[entry.key] = entry.data.detach(), tuple(entry.global_shape)
    return held


def build_network():
    """The tiny network on TP2, every parameter NaN."""
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_medx.models.megatron_config import decoder_architecture
    from megatron_medx.models.qwen3_vl import Qwen3VLModel
    from megatron_medx.models.specs import layer_specs
    from megatron_medx.parallel.groups import solo_groups

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=WORLD_SIZE)
    model_parallel_cuda_manual_seed(1)
    architecture = decoder_architecture(tiny_model())
    grid = {"tensor_model_parallel_size": WORLD_SIZE, "use_cpu_initialization": True, "params_dtype": torch.float32}
    config = TransformerConfig(**architecture, **grid)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    network = Qwen3VLModel(tiny_model(), config, layer_specs(False), groups, solo_groups())
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    return network


def _alone(key: str, tensor: torch.Tensor):
    from megatron.core.dist_checkpointing import ShardedTensor

    return ShardedTensor.from_rank_offsets(key, tensor)


def _save(state: dict, folder: Path, rank: int) -> None:
    """Save with what a training run adds: optimizer tensors, a random state, extra states, plain values."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor

    folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    moment = torch.full((3,), float(rank))
    state |= {
        "optimizer": {"m": ShardedTensor.from_rank_offsets("optimizer.state.exp_avg.w", moment, (0, rank, WORLD_SIZE))},
        "chained": {"m": ShardedTensor.from_rank_offsets("chained_0.optimizer.state.w", moment, replica_id=rank)},
        "rng_state": ShardedObject("rng_state", [moment], (WORLD_SIZE,), (rank,)),
        "extra": ShardedObject("decoder.layers.0.self_attention._extra_state", None, (1,), (0,), replica_id=rank),
        "iteration": 7,
    }
    dist_checkpointing.save(state, str(folder))
