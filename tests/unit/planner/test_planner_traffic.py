"""Which link carries an axis, and bytes along it worked out by hand."""

from dataclasses import replace

import pytest

from megatron_medx.config.parameters import parameter_counts
from megatron_medx.config.run import ParallelSection
from megatron_medx.planner.hardware import H100
from megatron_medx.planner.links import Group, all_to_all_s, groups, link, ring_s
from megatron_medx.planner.traffic import (
    Messages,
    hop_bytes,
    layer_messages,
    output_messages,
    step_bytes,
    tower_messages,
    trained_parameters,
)
from megatron_medx.planner.workload import Load
from megatron_medx.recipes import get_recipe

ROW = Load(slots=8192, squares=8192**2, patches=4096, patch_squares=4096**2, largest_image=4096)


def run(name="pretrain_8b", freeze=(), **parallel):
    config = get_recipe(name)
    config.parallel = ParallelSection(**parallel)
    config.training = replace(config.training, freeze=freeze, recompute="none", recompute_vision="none")
    return config


def test_groups_follow_megatrons_order_of_ranks():
    of_axes = groups(run("pretrain_30b_a3b", world_size=64, tensor=2, context=2, pipeline=2, expert=4))
    assert of_axes["tensor"] == Group(2, 1)
    assert of_axes["context"] == Group(2, 2)
    assert of_axes["images"] == Group(4, 1)
    assert of_axes["pipeline"] == Group(2, 32)
    assert of_axes["data"] == Group(16, 2)
    assert (of_axes["expert"], of_axes["expert data"]) == (Group(4, 1), Group(8, 4))


@pytest.mark.parametrize(
    ("group", "name", "gigabytes"),
    [
        (Group(8, 1), "NVLink", 450 * 0.75),
        (Group(2, 4), "NVLink", 450 * 0.75),
        (Group(16, 1), "InfiniBand x 8", min(8 * 50 * 0.8, 450 * 0.75)),
        (Group(8, 2), "InfiniBand x 4", 4 * 50 * 0.8),
        (Group(4, 4), "InfiniBand x 2", 2 * 50 * 0.8),
        (Group(2, 8), "InfiniBand", 50 * 0.8),
        (Group(2, 64), "InfiniBand", 50 * 0.8),
    ],
)
def test_links(group, name, gigabytes):
    found = link(group, H100)
    assert (found.name, found.bytes_per_s / 1e9) == (name, pytest.approx(gigabytes))


def test_seconds_of_messages():
    assert ring_s(45e9 * 0.75, 2, Group(8, 1), H100) == pytest.approx(0.1 + 2 * 20e-6)
    assert ring_s(1e9, 1, Group(1, 1), H100) == 0 and ring_s(0, 1, Group(8, 1), H100) == 0
    # 16 ranks in two nodes: of 15 parts 7 stay inside and 8 leave
    outside = 15e9 * 8 / 15 / (50e9 * 0.8)
    assert all_to_all_s(15e9, 0, Group(16, 1), H100) == pytest.approx(outside)
    assert all_to_all_s(7e9, 0, Group(8, 1), H100) == pytest.approx(7e9 / (450e9 * 0.75))


def test_a_dense_layer_by_hand():
    """8B: hidden 4,096, 8 key/value heads of 128, bf16; 8,192 slots, tensor 4, context 2."""
    messages = layer_messages(run(world_size=8, tensor=4, context=2), ROW)
    hidden = 3 / 4 * 8192 / 2 * 4096 * 2  # one all-gather or reduce-scatter
    assert messages["tensor"] == Messages(4 * hidden, 6 * hidden, 4 * hidden, 4, 6)
    keys = 1 / 2 * 8192 * 2 * 8 * 128 / 4 * 2
    assert messages["context"] == Messages(keys, keys, 0, 1, 1)
    assert messages["expert"].forward_bytes == 0
    assert messages["tensor"].again().backward_bytes == 10 * hidden


def test_a_layer_of_experts_by_hand():
    """30B-A3B: hidden 2,048, 8 experts a token; each token's hidden state goes to 8 experts, 7 of 8 on other ranks."""
    messages = layer_messages(run("pretrain_30b_a3b", world_size=16, tensor=2, expert=8), ROW)
    sent = 8192 / 2 * 8 * 2048 * 2 * 7 / 8
    assert messages["expert"] == Messages(2 * sent, 2 * sent, 0, 2, 2)
    hidden = 1 / 2 * 8192 * 2048 * 2
    assert messages["tensor"].forward_bytes == 2 * hidden  # around attention alone


def test_what_first_and_last_stage_add():
    config = run(world_size=16, tensor=4, context=2, pipeline=2)
    # 4,096 patches are 1,024 tokens; the main merger's features and three DeepStack levels, to 7 of 8 ranks
    assert tower_messages(config, ROW)["images"].forward_bytes == 7 / 8 * 1024 * 4 * 4096 * 2
    assert output_messages(config, ROW)["tensor"].forward_bytes == 3 / 4 * 8192 / 2 * 4096 * 2
    assert hop_bytes(config, ROW) == 8192 / 8 * 4096 * 2  # no DeepStack features: they never leave the first stage
    assert hop_bytes(run(world_size=8), ROW) == 0


def test_once_a_step_gradients_go_in_fp32_and_weights_in_bf16():
    config = run(world_size=8)
    total = sum(parameter_counts(config.model).values())
    assert trained_parameters(config, 0).others == total
    sent = step_bytes(config, 0)
    assert (sent.gradients, sent.weights) == pytest.approx((7 / 8 * 4 * total, 7 / 8 * 2 * total))
    assert sent.shared_gradients == sent.tied_gradients == sent.expert_gradients == 0


def test_frozen_parts_send_nothing():
    frozen = run(world_size=8, freeze=("vision", "language"))
    assert trained_parameters(frozen, 0).others == parameter_counts(frozen.model)["merger"]


def test_tower_is_summed_over_tensor_and_tied_embeddings_over_the_ends():
    config = run("pretrain_2b", world_size=8, tensor=2, pipeline=2)
    counts = parameter_counts(config.model)
    first, last = step_bytes(config, 0), step_bytes(config, 1)
    assert first.shared_gradients == 2 * 1 / 2 * 4 * (counts["vision"] + counts["merger"])
    assert first.tied_gradients == last.tied_gradients == 4 * counts["embeddings"] / 2
    assert last.shared_gradients == 0


def test_experts_are_reduced_over_the_ranks_that_hold_the_same():
    config = run("pretrain_30b_a3b", world_size=32, tensor=2, expert=8)
    held = trained_parameters(config, 0)
    assert held.experts == 48 * 128 * 3 * 2048 * 768 / 8
    assert step_bytes(config, 0).expert_gradients == pytest.approx(3 / 4 * 4 * held.experts)
