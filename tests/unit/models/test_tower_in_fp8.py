"""The tower in FP8 pads its patches with a blank image: whole groups go in, and what comes out is the images' alone.

Without Transformer Engine Megatron's FP8 context does nothing, so on a CPU the numbers are those without padding.
"""

import pytest
import torch

from megatron_medx.recipes import get_recipe

MODEL = get_recipe("demo").model


@pytest.fixture(scope="module")
def vision():
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    from megatron_medx.models import vision

    return vision


@pytest.fixture(scope="module")
def towers(vision):
    """A tower, and one in each multiple with the same weights."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megatron_medx.models.megatron_config import decoder_config, tower_config
    from megatron_medx.models.specs import layer_specs
    from megatron_medx.parallel.groups import solo_groups, start_alone

    start_alone()

    def tower(**fp8):
        torch.manual_seed(3)
        config = tower_config(MODEL, decoder_config(MODEL, bf16=bool(fp8), **fp8), in_fp8=bool(fp8))
        config.params_dtype = torch.float32
        built = vision.VisionTower(MODEL, config, layer_specs(MODEL, False), solo_groups())
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        return built

    yield {1: tower(), 16: tower(fp8="hybrid", fp8_recipe="tensorwise"), 128: tower(fp8="e4m3", fp8_recipe="blockwise")}
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("patches", "multiple", "blank"), [(20, 16, [1, 2, 6]), (4, 128, [1, 2, 62]), (12, 16, [1, 2, 2])]
)
def test_a_blank_image_fills_the_group(vision, patches, multiple, blank):
    pixels, grids = torch.ones(patches, 5), torch.tensor([[1, 2, patches // 2]])
    padded, more = vision.padded_images(pixels, grids, multiple, 2)
    assert len(padded) % multiple == 0 and len(padded) - patches < multiple
    assert torch.equal(padded[:patches], pixels) and not padded[patches:].any()
    assert more.tolist() == [grids[0].tolist(), blank] and more.prod(dim=1).sum() == len(padded)


@pytest.mark.parametrize(("patches", "multiple"), [(16, 16), (20, 1), (128, 128)])
def test_whole_groups_stay_as_they_are(vision, patches, multiple):
    pixels, grids = torch.ones(patches, 5), torch.tensor([[1, 2, patches // 2]])
    padded, more = vision.padded_images(pixels, grids, multiple, 2)
    assert padded is pixels and more is grids


def test_merge_blocks_of_nine_patches_stay_whole(vision):
    padded, grids = vision.padded_images(torch.ones(9, 5), torch.tensor([[1, 3, 3]]), 16, 3)
    assert len(padded) == 144 and grids.tolist() == [[1, 3, 3], [1, 3, 45]]


@pytest.mark.parametrize("multiple", [16, 128])
def test_features_and_gradients_are_those_without_padding(towers, multiple):
    grids = torch.tensor([[1, 4, 6], [2, 2, 2], [1, 2, 4]])
    pixels = torch.randn(int(grids.prod(dim=1).sum()), MODEL.vision.patch_dim, generator=torch.manual_seed(1))
    assert len(pixels) % multiple, "a group that is not whole"
    entered = []
    results = []
    for tower in (towers[1], towers[multiple]):
        hook = tower.encoder.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: entered.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
        final, taps = tower(pixels, grids)
        hook.remove()
        tower.zero_grad()
        (final.square().sum() + sum(tap.sum() for tap in taps)).backward()
        gradients = [parameter.grad for parameter in tower.parameters()]
        results.append((final, taps, gradients))
    (final, taps, gradients), (padded_final, padded_taps, padded_gradients) = results
    assert entered[0] == len(pixels) and entered[1] % multiple == 0 and entered[1] > len(pixels)
    assert padded_final.shape == final.shape
    torch.testing.assert_close(padded_final, final)
    torch.testing.assert_close(padded_taps, taps)
    torch.testing.assert_close(padded_gradients, gradients, rtol=1e-4, atol=1e-4)
