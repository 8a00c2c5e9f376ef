"""Sizes and patches against the stock image processors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as stock_smart_resize

from megatron_medx.data.image_grid import num_image_tokens, smart_resize
from megatron_medx.data.patches import Patcher
from megatron_medx.errors import DataError

SIZES = [(1, 1), (3, 500), (17, 31), (64, 64), (333, 251), (512, 511), (1955, 1841), (4000, 21), (80, 16), (48, 48)]

LIMITS = [(4096, 25600), (65536, 16777216), (3136, 3136)]


def picture(width, height, mode="RGB"):
    noise = np.random.default_rng(width * 10007 + height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


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
    grid = patcher.grid(width, height)
    pixels_PC = patcher.patchify(picture(width, height), grid)
    assert pixels_PC.shape == (grid[1] * grid[2], patcher.patch_dim) and pixels_PC.dtype == torch.float32
    assert num_image_tokens(grid, 2) * 4 == len(pixels_PC)


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
        grid = patcher.grid(width, height)
        pixels_PC = patcher.patchify(image, grid)
        for name, stock in forms.items():
            theirs = stock(images=image, return_tensors="pt")
            assert theirs["image_grid_thw"].tolist() == [list(grid)]
            worst[name] = max(worst[name], float((theirs["pixel_values"] - pixels_PC).abs().max()))
    assert worst["pil"] == 0.0
    assert worst["torchvision"] <= 2 * 2 / 255 + 1e-6  # pixels run from -1 to 1


CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


@pytest.mark.parametrize(
    "settings",
    [
        {"patch_size": 16, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
        {"patch_size": 14, **CLIP},
        {"patch_size": 16, "merge_size": 3, "temporal_patch_size": 1, "rescale_factor": 1 / 128, **CLIP},
    ],
)
def test_every_bit_is_the_stock_processors_whatever_the_settings(settings):
    stock = Qwen2VLImageProcessorPil(size={"shortest_edge": 5000, "longest_edge": 40000}, **settings)
    patcher = Patcher(stock)
    for width, height in np.random.default_rng(1).integers(20, 400, (20, 2)).tolist():
        theirs = stock(images=picture(width, height), return_tensors="pt")
        grid = patcher.grid(width, height)
        assert theirs["image_grid_thw"].tolist() == [list(grid)]
        assert torch.equal(theirs["pixel_values"], patcher.patchify(picture(width, height), grid))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_every_opaque_mode_becomes_the_rgb_of_the_stock_processor(patcher, mode):
    image = picture(133, 71, mode)
    theirs = patcher.processor(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(theirs, patcher.patchify(image.convert("RGB"), patcher.grid(133, 71)))


def test_the_plan_decides_the_size_not_the_image(patcher):
    """2 x 6 patches of an upright picture: squeezed to 32 x 96 px."""
    image = picture(70, 200)
    assert patcher.grid(70, 200) != (1, 2, 6)
    pixels_PC = patcher.patchify(image, (1, 2, 6))
    squeezed = image.resize((96, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(patcher.unpatchify(pixels_PC, torch.tensor([1, 2, 6]))), np.asarray(squeezed))


def test_unpatchify_undoes_patchify(patcher):
    image = picture(96, 64)  # 6,144 px, multiples of 32: no scaling
    grid = patcher.grid(96, 64)
    assert np.array_equal(
        np.asarray(patcher.unpatchify(patcher.patchify(image, grid), torch.tensor(grid))), np.asarray(image)
    )


def test_directory_without_image_settings_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file .*preprocessor_config\.json"):
        Patcher.from_directory(tmp_path, 4096, 25600)


@pytest.mark.parametrize(("name", "value"), [("do_resize", False), ("resample", 2), ("do_normalize", False)])
def test_directory_that_prepares_images_otherwise_is_refused(demo, tmp_path, name, value):
    settings = json.loads((demo / "processor" / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {name: value}))
    with pytest.raises(DataError, match=rf"preprocessor_config\.json sets {name} to {value}"):
        Patcher.from_directory(tmp_path, 4096, 25600)
