"""Sizes and patches against the stock image processors."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as stock_smart_resize

from megatron_medx.data.patches import Patcher, num_image_tokens, smart_resize
from megatron_medx.errors import DataError

SIZES = [(1, 1), (3, 500), (17, 31), (64, 64), (333, 251), (512, 511), (1955, 1841), (4000, 21), (80, 16), (48, 48)]

LIMITS = [(4096, 25600), (65536, 16777216), (3136, 3136)]


def picture(width, height):
    noise = np.random.default_rng(width * 10007 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def patcher(demo):
    return Patcher.from_directory(demo / "processor", 4096, 25600)


@pytest.mark.parametrize("limits", LIMITS)
def test_smart_resize_is_the_stock_one(limits):
    sizes = np.random.default_rng(0).integers(20, 4000, (2000, 2)).tolist() + SIZES
    for height, width in sizes:
        assert smart_resize(height, width, 32, *limits) == stock_smart_resize(height, width, 32, *limits)


@pytest.mark.parametrize(("height", "width"), [(1, 201), (500, 2), (0, 5)])
def test_too_long_an_image_is_refused(height, width):
    with pytest.raises(DataError, match=f"an image of {width} x {height} px"):
        smart_resize(height, width, 32, 4096, 25600)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_grid_without_decoding_is_the_grid_of_the_patches(patcher, width, height):
    pixels_PC, grid_3 = patcher.patchify(picture(width, height))
    assert tuple(grid_3.tolist()) == patcher.grid(width, height)
    assert pixels_PC.shape == (int(grid_3.prod()), patcher.patch_dim) and pixels_PC.dtype == torch.float32
    assert num_image_tokens(tuple(grid_3.tolist()), 2) * 4 == len(pixels_PC)


def test_patches_are_those_of_the_stock_processor(demo, patcher):
    """Bit-equal to the stock processor on PIL; within two gray levels of 255 of its torchvision form.

    Engines use the latter by default.

    Measured on noise, the hardest for a resampler: 0.0157, which is two levels; 3,748 of 909,312 values differ at all.
    """
    forms = {
        name: AutoImageProcessor.from_pretrained(demo / "processor", backend=name) for name in ("pil", "torchvision")
    }
    worst = dict.fromkeys(forms, 0.0)
    for width, height in SIZES[2:]:
        image = picture(width, height)
        pixels_PC, grid_3 = patcher.patchify(image)
        for name, stock in forms.items():
            theirs = stock(images=image, return_tensors="pt")
            assert theirs["image_grid_thw"].tolist() == [grid_3.tolist()]
            worst[name] = max(worst[name], float((theirs["pixel_values"] - pixels_PC).abs().max()))
    assert worst["pil"] == 0.0
    assert worst["torchvision"] <= 2 * 2 / 255 + 1e-6  # pixels run from -1 to 1


def test_unpatchify_undoes_patchify(patcher):
    image = picture(96, 64)  # 6,144 px, multiples of 32: no scaling
    assert np.array_equal(np.asarray(patcher.unpatchify(*patcher.patchify(image))), np.asarray(image))


def test_directory_without_image_settings_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file .*preprocessor_config\.json"):
        Patcher.from_directory(tmp_path, 4096, 25600)
