"""FLOPs: matrices against parameter counts, attention by hand, frozen parts by the stated convention."""

import pytest

from megatron_medx.config.flops import flops_polynomial, forward_flops, image_flops, step_flops
from megatron_medx.config.parameters import active_layer_matrices, decoder_layer_matrices, parameter_counts
from megatron_medx.recipes import get_recipe
from megatron_medx.recipes.sizes import qwen3_vl_8b

MODEL = get_recipe("demo").model
SEGMENTS, IMAGES = [100, 28], [64, 100, 16]


def test_forward_by_hand():
    forward = forward_flops(MODEL, SEGMENTS, IMAGES)
    assert forward["output"] == (2 * 128 * 4096 * 160, 0)
    # causal: half of 4 n^2 (4 heads x 32), 4 layers
    assert forward["decoder"] == (2 * 128 * 4 * decoder_layer_matrices(MODEL), 2 * (100**2 + 28**2) * 128 * 4)
    # every image attends to itself alone, width 96, 4 layers
    assert forward["vision"][1] == 4 * (64**2 + 100**2 + 16**2) * 96 * 4


def test_matrices_cost_two_flops_a_parameter_and_token():
    """Biases, norms and positions are the few parameters that cost nothing."""
    counts = parameter_counts(MODEL)
    forward = forward_flops(MODEL, [1], [4])
    assert forward["decoder"][0] / 2 == pytest.approx(counts["decoder"], rel=0.01)
    assert forward["merger"][0] / 2 == pytest.approx(counts["merger"], rel=0.01)
    positions = MODEL.vision.num_position_embeddings * MODEL.vision.hidden_size
    assert forward["vision"][0] / 8 == pytest.approx(counts["vision"] - positions, rel=0.01)


def test_a_token_costs_its_router_and_the_experts_that_it_is_sent_to():
    model = get_recipe("demo_moe").model  # width 160, 8 experts of 224, 2 a token, 4 layers
    attention = 160 * (2 * 4 * 32 + 2 * 2 * 32)
    assert active_layer_matrices(model) == attention + 8 * 160 + 2 * 3 * 160 * 224
    assert forward_flops(model, [10], [])["decoder"][0] == 2 * 10 * 4 * active_layer_matrices(model)


def test_images_cost_what_tower_and_mergers_do_with_them():
    forward = forward_flops(MODEL, SEGMENTS, IMAGES)
    assert sum(image_flops(MODEL, patches) for patches in IMAGES) == sum(forward["vision"]) + sum(forward["merger"])
    # attention makes one large image costlier than four of a quarter of its area
    assert image_flops(MODEL, 4096) > 2 * 4 * image_flops(MODEL, 1024)


def test_forward_and_backward_are_three_forwards():
    forward = {piece: sum(both) for piece, both in forward_flops(MODEL, SEGMENTS, IMAGES).items()}
    step = step_flops(MODEL, SEGMENTS, IMAGES)
    assert step.pop("total") == sum(step.values())
    assert step == {piece: 3 * flops for piece, flops in forward.items()}


def test_frozen_parts():
    forward = forward_flops(MODEL, SEGMENTS, IMAGES)
    frozen_tower = step_flops(MODEL, SEGMENTS, IMAGES, ["vision"])
    assert frozen_tower["vision"] == sum(forward["vision"])
    assert frozen_tower["merger"] == 3 * sum(forward["merger"])
    align = step_flops(MODEL, SEGMENTS, IMAGES, ["vision", "language"])
    assert align["decoder"] == 2 * forward["decoder"][0] + 3 * forward["decoder"][1]
    assert align["output"] == 2 * forward["output"][0]
    between = step_flops(MODEL, SEGMENTS, IMAGES, ["merger"])
    assert between["merger"] == 2 * forward["merger"][0]
    text_only = step_flops(MODEL, SEGMENTS, IMAGES, ["vision", "merger"])
    assert text_only["vision"] == sum(forward["vision"]) and text_only["merger"] == sum(forward["merger"])
    assert text_only["decoder"] == 3 * sum(forward["decoder"])


def test_packing_is_cheaper_than_one_long_segment():
    assert step_flops(MODEL, [64, 64], [])["total"] < step_flops(MODEL, [128], [])["total"]
    assert step_flops(MODEL, [], [])["total"] == 0


@pytest.mark.parametrize("freeze", [(), ("vision",), ("vision", "language"), ("merger",), ("vision", "merger")])
@pytest.mark.parametrize("model", [MODEL, get_recipe("demo_moe").model, qwen3_vl_8b()], ids=["dense", "moe", "8b"])
def test_the_polynomial_is_the_same_arithmetic(model, freeze):
    powers = flops_polynomial(model, freeze)
    for tokens, patches in (([0], [4]), ([1], []), ([977, 3], [16, 4096, 1024]), ([131_072], [65_536])):
        total = powers.tokens * sum(tokens) + powers.tokens_squared * sum(n * n for n in tokens)
        total += powers.patches * sum(patches) + powers.patches_squared * sum(n * n for n in patches)
        assert total == step_flops(model, tokens, patches, freeze)["total"]
