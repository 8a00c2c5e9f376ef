"""The interface of decoders, and Pillow's."""

import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_medx.data.decoder_choice import make_decoder
from megatron_medx.data.decoding import ImageRequest, PillowDecoder
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.view import AS_STORED
from megatron_medx.data.patches import Patcher
from megatron_medx.errors import ConfigError, DataError


@pytest.fixture
def patcher(demo):
    return Patcher.from_directory(demo / "processor", 4096, 25600)


def request_of(name, width, height, grid, content=None):
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    saved = BytesIO()
    Image.fromarray(noise).save(saved, "PNG")
    return ImageRequest(ImageFile(name, saved.getvalue() if content is None else content), AS_STORED, grid)


def test_pillow_gives_the_patches_of_each_image_in_the_size_asked_for(patcher):
    requests = [request_of("a.png", 77, 31, (1, 2, 6)), request_of("b.png", 64, 64, (1, 4, 4))]
    patches = make_decoder("pillow", patcher).patches(requests)
    assert [tuple(pixels_PC.shape) for pixels_PC in patches] == [(12, patcher.patch_dim), (16, patcher.patch_dim)]
    for request, pixels_PC in zip(requests, patches, strict=True):
        image = Image.open(BytesIO(request.file.content))
        assert torch.equal(pixels_PC, patcher.patchify(image, request.grid))
    assert make_decoder("pillow", patcher).patches([]) == []


def test_an_image_that_cannot_be_decoded_is_named(patcher):
    good = request_of("good.png", 64, 64, (1, 4, 4))
    broken = request_of("shards/00003.tar: 7.1.png", 64, 64, (1, 4, 4), good.file.content[:200])
    decoder = PillowDecoder(patcher)
    with pytest.raises(DataError, match=r"shards/00003\.tar: 7\.1\.png cannot be read"):
        decoder.patches([good, broken, good])
    assert len(decoder.patches([good])) == 1


def test_an_unknown_decoder_is_refused(patcher):
    with pytest.raises(ConfigError, match=r"data\.decoder = 'opencv'"):
        make_decoder("opencv", patcher)


def test_dali_that_is_not_installed_is_refused(patcher, monkeypatch):
    monkeypatch.delitem(sys.modules, "megatron_medx.data.dali_decoder", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ConfigError, match=r"pip install nvidia-dali"):
        make_decoder("dali", patcher)
