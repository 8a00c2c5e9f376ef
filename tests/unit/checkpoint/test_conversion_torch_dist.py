"""The torch_dist format against Megatron itself: it loads what we write, we read what it writes."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from conversion_networks import random_tensors, tiny_model, write_hf
from megatron_ranks import MOE, MOE_GRIDS, WORLD_SIZE, run_moe_rank, run_rank, tensor_parallel_slice
from safetensors.torch import load_file

from megatron_medx.checkpoint.convert import to_hf, to_megatron
from megatron_medx.checkpoint.layout.rules import bindings, megatron_shapes
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.megatron_files.torch_dist import COMMON_STATE, TorchDistFolder
from megatron_medx.config.checkpoint_folders import weights_folder
from megatron_medx.errors import CheckpointError, MedxError


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A converted checkpoint root, and the Hugging Face tensors it was made from."""
    folder = tmp_path_factory.mktemp("converted")
    tensors = random_tensors(tiny_model())
    to_megatron(write_hf(folder / "hf", tiny_model(), tensors), folder / "root")
    return folder / "root", tensors


@pytest.fixture(scope="module")
def two_ranks(converted, tmp_path_factory):
    """What two gloo ranks left: their loaded slices, and checkpoints written on TP2 and on PP2."""
    root, _ = converted
    out = tmp_path_factory.mktemp("ranks")
    arguments = (str(out / "store"), str(root / "release"), str(out))
    torch.multiprocessing.spawn(run_rank, args=arguments, nprocs=WORLD_SIZE)
    for name in ("tp2", "pp2"):
        shutil.copy(root / "run.yaml", out / name)
        (out / name / "latest_checkpointed_iteration.txt").write_text("7")
    return out


def test_megatron_loads_a_converted_checkpoint_in_one_process(converted, tmp_path):
    from megatron.core import dist_checkpointing

    root, _ = converted
    stored = TorchDistFolder(root / "release")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wanted = {
            key: dist_checkpointing.ShardedTensor.from_rank_offsets(key, torch.empty(spec.shape))
            for key, spec in stored.specs.items()
        }
        loaded = dist_checkpointing.load(dict(wanted), str(root / "release"))
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(loaded[key], stored.read(key)) for key in stored.specs)
    assert {key: loaded[key] for key in COMMON_STATE} == COMMON_STATE


def test_torch_loads_a_checkpoint_of_several_files(converted, tmp_path):
    root, _ = converted
    to_hf(root, tmp_path / "hf")
    to_megatron(tmp_path / "hf", tmp_path / "cut", shard_size_bytes=20_000)
    whole, cut = TorchDistFolder(root / "release"), TorchDistFolder(tmp_path / "cut" / "release")
    assert whole.specs == cut.specs and len(list(cut.folder.glob("__0_*.distcp"))) > 10
    loaded = {key: torch.empty(spec.shape, dtype=spec.dtype) for key, spec in cut.specs.items()}
    dcp.load(loaded, storage_reader=dcp.FileSystemReader(cut.folder), no_dist=True)
    assert all(torch.equal(loaded[key], whole.read(key)) for key in whole.specs)


def test_megatron_loads_it_on_two_tensor_parallel_ranks(converted, two_ranks):
    root, _ = converted
    stored = TorchDistFolder(root / "release")
    for rank in range(WORLD_SIZE):
        loaded = torch.load(two_ranks / f"loaded_{rank}.pt")
        assert set(loaded) == set(stored.specs)
        for key, part in loaded.items():
            assert torch.equal(part, tensor_parallel_slice(key, stored.read(key), rank)), key


@pytest.mark.parametrize("grid", ["tp2", "pp2"])
def test_checkpoints_that_megatron_wrote_on_a_grid_export_bit_equal(converted, two_ranks, tmp_path, grid):
    _, tensors = converted
    assert len(list((two_ranks / grid / "iter_0000007").glob("*.distcp"))) >= WORLD_SIZE
    to_hf(two_ranks / grid, tmp_path / "hf")
    exported = load_file(tmp_path / "hf" / "model.safetensors")
    assert set(exported) == set(tensors)
    assert all(torch.equal(exported[key], tensor) for key, tensor in tensors.items())


def test_the_network_that_training_builds_loads_it_whole(converted, two_ranks):
    stored = TorchDistFolder(converted[0] / "release")
    shapes = megatron_shapes(bindings(tiny_model()))
    for rank in range(WORLD_SIZE):
        held = torch.load(two_ranks / f"network_{rank}.pt")
        assert {key: shape for key, (_, shape) in held.items()} == shapes
        for key, (part, _) in held.items():
            assert torch.equal(part, tensor_parallel_slice(key, stored.read(key), rank)), key


@pytest.fixture(scope="module")
def moe_ranks(tmp_path_factory):
    """A converted mixture of experts, its Hugging Face tensors, and what two ranks made of it on every MOE_GRIDS."""
    folder = tmp_path_factory.mktemp("moe")
    tensors = random_tensors(MOE)
    to_megatron(write_hf(folder / "hf", MOE, tensors), folder / "root", shard_size_bytes=20_000)
    assert len(list((folder / "root" / "release").glob("*.distcp"))) > 10
    arguments = (str(folder / "store"), str(folder / "root" / "release"), str(folder))
    torch.multiprocessing.spawn(run_moe_rank, args=arguments, nprocs=WORLD_SIZE)
    for grid in MOE_GRIDS:
        shutil.copy(folder / "root" / "run.yaml", folder / grid)
    return folder, tensors


@pytest.mark.parametrize("grid", MOE_GRIDS)
def test_experts_are_dealt_to_ranks_and_come_back_bit_equal(moe_ranks, grid, tmp_path):
    folder, tensors = moe_ranks
    stored = TorchDistFolder(folder / "root" / "release")
    _, expert_ranks = MOE_GRIDS[grid]
    for rank in range(WORLD_SIZE):
        held = torch.load(folder / f"{grid} {rank}.pt")
        experts = {name: part for name, (part, _) in held.items() if ".experts." in name}
        each = MOE.num_experts // expert_ranks
        first = each * rank if expert_ranks > 1 else 0
        assert {int(name.rpartition("/")[2]) for name in experts} == set(range(first, first + each))
        for name, part in experts.items():
            key, _, number = name.rpartition("/")
            assert torch.equal(part, stored.read(key)[int(number)]), name
        assert not any(part.isnan().any() for part, _ in held.values())
        assert {name.partition("/")[0]: shape for name, (_, shape) in held.items()} == megatron_shapes(bindings(MOE))
    to_hf(folder / grid / "iter_0000007", tmp_path / "hf")
    exported = load_file(tmp_path / "hf" / "model.safetensors")
    assert set(exported) == set(tensors)
    assert all(torch.equal(exported[key], tensor) for key, tensor in tensors.items())


def test_every_module_that_may_ask_for_an_extra_state_finds_one(converted):
    index = pickle.loads((converted[0] / "release" / ".metadata").read_bytes())
    for module in (
        "decoder.layers.1.mlp.linear_fc1",
        "decoder.layers.0.self_attention.core_attention",
        "decoder.layers.0.self_attention.q_layernorm",
        "decoder.final_layernorm",
        "output_layer",
        "vision.encoder.layers.2.self_attention.linear_proj",
    ):
        assert f"{module}._extra_state/shard_0_1" in index.state_dict_metadata


def test_state_of_the_run_is_not_weights(converted, two_ranks):
    root, _ = converted
    assert TorchDistFolder(two_ranks / "tp2" / "iter_0000007").specs == TorchDistFolder(root / "release").specs


def test_the_layout_is_megatrons_release_layout(converted):
    root, _ = converted
    assert (root / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert sorted(path.name for path in (root / "release").iterdir()) == [".metadata", "__0_0.distcp", "metadata.json"]
    assert json.loads((root / "release" / "metadata.json").read_text())["sharded_backend"] == "torch_dist"
    assert weights_folder(root) == root / "release" == weights_folder(root / "release")


@pytest.fixture
def damaged(converted, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(converted[0], tmp_path / "root"))


def test_an_unfinished_save_is_refused(damaged):
    (damaged / "release" / "metadata.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no metadata\.json, which Megatron writes last"):
        MegatronCheckpoint(damaged)


@pytest.mark.parametrize("keep_bytes", [0, 20_000])
def test_a_cut_data_file_is_refused(damaged, keep_bytes):
    path = damaged / "release" / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:keep_bytes])
    with pytest.raises(CheckpointError, match=f"has {keep_bytes} bytes, its index reaches to"):
        MegatronCheckpoint(damaged)


def test_an_absent_data_file_is_refused(damaged):
    (damaged / "release" / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match="has 0 bytes"):
        MegatronCheckpoint(damaged)


def test_an_overwritten_data_file_is_refused_on_reading(damaged):
    path = damaged / "release" / "__0_0.distcp"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(CheckpointError, match=r"embedding\.word_embeddings\.weight in .* cannot be read"):
        MegatronCheckpoint(damaged).read("embedding.word_embeddings.weight")


def test_an_unreadable_index_is_refused(damaged):
    for content in (b"", b"nonsense", pickle.dumps(3), b"\x80\xff", b"cnot.a.module\nName\n."):
        (damaged / "release" / ".metadata").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"\.metadata cannot be read"):
            MegatronCheckpoint(damaged)


def test_a_tensor_with_a_part_missing_is_refused(two_ranks, tmp_path):
    root = Path(shutil.copytree(two_ranks / "tp2", tmp_path / "root"))
    path = root / "iter_0000007" / ".metadata"
    index = pickle.loads(path.read_bytes())
    index.state_dict_metadata["embedding.word_embeddings.weight"].chunks.pop()
    path.write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match="chunks hold 1920 of 3840 values"):
        MegatronCheckpoint(root)


def test_quantized_weights_are_refused(damaged):
    path = damaged / "release" / ".metadata"
    index = pickle.loads(path.read_bytes())
    index.state_dict_metadata["vision.pos_embed.weight"].properties.dtype = torch.uint8
    path.write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match=r"vision\.pos_embed\.weight in .* has dtype torch\.uint8"):
        MegatronCheckpoint(damaged)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no latest_checkpointed_iteration\.txt"):
        MegatronCheckpoint(tmp_path)


def test_a_tracker_that_says_nonsense_is_refused(damaged):
    (damaged / "latest_checkpointed_iteration.txt").write_text("soon")
    with pytest.raises(CheckpointError, match="says 'soon'"):
        MegatronCheckpoint(damaged)


def test_a_tracker_that_names_an_absent_folder_is_refused(damaged):
    (damaged / "latest_checkpointed_iteration.txt").write_text("12")
    with pytest.raises(CheckpointError, match=r"iter_0000012 has no metadata\.json"):
        MegatronCheckpoint(damaged)


def test_a_checkpoint_without_run_yaml_is_refused(damaged):
    (damaged / "run.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"has no run\.yaml"):
        MegatronCheckpoint(damaged)


def test_a_run_yaml_without_a_model_is_refused(damaged):
    (damaged / "run.yaml").write_text("run: {}\n")
    with pytest.raises(MedxError, match="without a model section"):
        MegatronCheckpoint(damaged)
