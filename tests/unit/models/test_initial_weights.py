"""Initial weights: each rank's slice of a tensor that is defined by seed and name alone."""

from types import SimpleNamespace

import pytest
import torch

from megatron_medx.recipes import get_recipe

MODEL = get_recipe("demo").model


@pytest.fixture(scope="module")
def weights():
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    from megatron_medx.models import initial_weights

    return initial_weights


def shard(key, whole, offset=(0, 0), local=None, stacked=0):
    """What a rank says of its part of a tensor; the first `stacked` dims number the tensors under one key."""
    local = local or whole[stacked:]
    return SimpleNamespace(
        key=key, global_shape=whole, global_offset=offset, local_shape=local, prepend_axis_num=stacked
    )


def test_slices_of_any_grid_are_slices_of_one_tensor(weights, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK_ROWS", 7)  # slices begin and end inside blocks
    key, whole = "decoder.layers.1.mlp.linear_fc1.weight", (30, 12)
    tensor = weights.initial_slice(shard(key, whole), 5, MODEL)
    for rows in ((0, 10), (10, 20), (13, 17), (29, 1)):
        part = weights.initial_slice(shard(key, whole, (rows[0], 0), (rows[1], 12)), 5, MODEL)
        assert torch.equal(part, tensor[rows[0] : rows[0] + rows[1]])
    columns = weights.initial_slice(shard(key, whole, (0, 4), (30, 8)), 5, MODEL)
    assert torch.equal(columns, tensor[:, 4:])


def test_every_expert_is_a_tensor_of_its_own_on_any_grid(weights):
    key, whole = "decoder.layers.1.mlp.experts.experts.linear_fc1.weight", (6, 30, 12)
    experts = [weights.initial_slice(shard(key, whole, (expert, 0, 0), stacked=1), 5, MODEL) for expert in range(6)]
    assert all(expert.shape == (30, 12) for expert in experts)
    assert len({tuple(expert.flatten().tolist()) for expert in experts}) == 6
    part = weights.initial_slice(shard(key, whole, (4, 10, 3), (7, 5), stacked=1), 5, MODEL)
    assert torch.equal(part, experts[4][10:17, 3:8])


def test_seed_and_name_decide(weights):
    key, whole = "embedding.word_embeddings.weight", (40, 16)
    first = weights.initial_slice(shard(key, whole), 5, MODEL)
    assert torch.equal(first, weights.initial_slice(shard(key, whole), 5, MODEL))
    assert not torch.equal(first, weights.initial_slice(shard(key, whole), 6, MODEL))
    assert not torch.equal(first, weights.initial_slice(shard("output_layer.weight", whole), 5, MODEL))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("embedding.word_embeddings.weight", 0.02),
        ("decoder.layers.0.self_attention.linear_proj.weight", 0.02 / 8**0.5),  # 4 layers, two projections each
        ("decoder.layers.0.mlp.linear_fc2.weight", 0.02 / 8**0.5),
        ("decoder.layers.0.mlp.router.weight", 0.02),
        ("vision.encoder.layers.3.mlp.linear_fc2.weight", 0.02 / 8**0.5),
        ("merger.final.linear_fc2.weight", 0.02),
    ],
)
def test_projections_into_the_residual_stream_are_smaller(weights, key, expected):
    assert weights.initial_slice(shard(key, (400, 300)), 1, MODEL).std().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("linear", "expected"), [("linear_fc1", 0.02), ("linear_fc2", 0.02 / 8**0.5)])
def test_experts_are_drawn_like_the_dense_mlp(weights, linear, expected):
    key = f"decoder.layers.0.mlp.experts.experts.{linear}.weight"
    expert = weights.initial_slice(shard(key, (8, 400, 300), (2, 0, 0), stacked=1), 1, MODEL)
    assert expert.std().item() == pytest.approx(expected, rel=0.02)


def test_norms_are_one_and_biases_zero(weights):
    one = weights.initial_slice(shard("decoder.final_layernorm.weight", (8,), (0,)), 1, MODEL)
    zero = weights.initial_slice(shard("vision.patch_embed.bias", (8,), (0,)), 1, MODEL)
    fused = weights.initial_slice(shard("decoder.layers.0.mlp.linear_fc1.layer_norm_weight", (8,), (0,)), 1, MODEL)
    bias = weights.initial_slice(shard("vision.encoder.layers.0.mlp.linear_fc1.layer_norm_bias", (8,), (0,)), 1, MODEL)
    assert one.eq(1).all() and fused.eq(1).all() and zero.eq(0).all() and bias.eq(0).all()
