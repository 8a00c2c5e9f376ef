"""What two gloo ranks do in test_conversion_torch_dist.py: Megatron's own load and save, cut as it cuts a model."""

from pathlib import Path

import torch
import torch.distributed as dist
from conversion_networks import tiny_model

from megatron_medx.checkpoint.megatron_files.torch_dist import COMMON_STATE
from megatron_medx.config.model import ModelConfig

MOE = tiny_model(experts=(6, 2))
MOE_GRIDS = {"tensor 2": (2, 1), "expert 2": (1, 2), "tensor 2 x expert 2": (2, 2)}
"""Name -> tensor, expert: what two ranks can do with a mixture of experts."""

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
    start(rank, store)
    from megatron.core import dist_checkpointing

    from megatron_medx.checkpoint.megatron_files.torch_dist import TorchDistFolder

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
    network = build_network(tiny_model(), tensor=WORLD_SIZE)
    load(network, converted)
    torch.save(held_by(network), Path(out) / f"network_{rank}.pt")
    dist.destroy_process_group()


def run_moe_rank(rank: int, store: str, converted: str, out: str) -> None:
    """Load a converted mixture of experts into the network of each grid, and save it as Megatron does."""
    start(rank, store)
    from megatron.core import dist_checkpointing, parallel_state

    for name, (tensor, expert) in MOE_GRIDS.items():
        network = build_network(MOE, tensor, expert)
        load(network, converted)
        torch.save(held_by(network), Path(out) / f"{name} {rank}.pt")
        folder = Path(out) / name / "iter_0000007"
        folder.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        dist_checkpointing.save({"model": network.sharded_state_dict(metadata=metadata())}, str(folder))
        parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def start(rank: int, store: str) -> None:
    """Be one of two gloo ranks on the CPU backend."""
    torch.set_num_threads(1)
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE)


def metadata() -> dict:
    """How keys are written, as a run says it to Megatron's modules: the data-parallel ranks hold copies."""
    from megatron.core import parallel_state

    copies = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return COMMON_STATE["content_metadata"] | {"dp_cp_group": copies}


def load(network: torch.nn.Module, converted: str) -> None:
    """Megatron's own load, which stops at every key that the checkpoint lacks."""
    from megatron.core import dist_checkpointing

    loaded = dist_checkpointing.load({"model": network.sharded_state_dict(metadata=metadata())}, converted)
    network.load_state_dict(loaded["model"], strict=True)


def held_by(network: torch.nn.Module) -> dict[str, tuple[torch.Tensor, tuple[int, ...]]]:
    """Checkpoint key -> (what this rank's parameter holds, shape of the whole tensor).

    Experts share a key, so theirs end in the expert's number.
    """
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
    from megatron.core.dist_checkpointing.utils import nested_values

    held = {}
    for entry in nested_values(network.sharded_state_dict(metadata=metadata())):
        if isinstance(entry, ShardedTensor | ShardedTensorFactory):
            shard = entry if isinstance(entry, ShardedTensor) else entry.build()[0]
            name = "/".join((entry.key, *map(str, shard.global_offset[: shard.prepend_axis_num])))
            held[name] = entry.data.detach(), tuple(shard.global_shape)
    return held


def build_network(model: ModelConfig, tensor: int, expert: int = 1) -> torch.nn.Module:
    """A tiny network on a grid of two ranks, every parameter NaN."""
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from megatron_medx.models.megatron_config import decoder_config
    from megatron_medx.models.qwen3_vl import Qwen3VLModel
    from megatron_medx.models.specs import layer_specs
    from megatron_medx.parallel.groups import solo_groups

    grid = {
        "tensor_model_parallel_size": tensor,
        "expert_model_parallel_size": expert,
        "expert_tensor_parallel_size": 1,
    }
    parallel_state.initialize_model_parallel(**grid)
    model_parallel_cuda_manual_seed(1)
    config = decoder_config(model, **grid, sequence_parallel=tensor > 1)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    network = Qwen3VLModel(model, config, layer_specs(model, False), groups, solo_groups())
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
