"""`generate`: questions about images, answered by a tiny random network in a directory like an export."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from megatron_medx.checkpoint.hugging_face.hf_config import config_json
from megatron_medx.errors import CheckpointError, DataError
from megatron_medx.generate import Assistant
from megatron_medx.recipes import get_recipe


def test_a_folder_that_is_no_hugging_face_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"no .*config\.json"):
        Assistant.load(tmp_path)


@pytest.fixture(scope="module")
def assistant(demo, tmp_path_factory):
    """A random network with the demo's processor, saved and loaded by transformers."""
    import shutil

    import transformers

    folder = tmp_path_factory.mktemp("export") / "hf"
    shutil.copytree(demo / "processor", folder)
    model = replace(get_recipe("demo").model, num_layers=2)
    config = transformers.Qwen3VLConfig(**config_json(model, torch.float32, {}))
    torch.manual_seed(0)
    transformers.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return Assistant.load(folder)


def test_it_answers_for_a_dicom_and_a_png_and_without_image(assistant, demo, tmp_path):
    Image.new("RGB", (90, 70), "white").save(tmp_path / "white.png")
    files = [demo / "source" / "images" / "cr-chest.dcm", tmp_path / "white.png"]
    for images in (files, files[:1], []):
        first = assistant.ask(images, "Which imaging modality is this?", max_new_tokens=4)
        assert first == assistant.ask(images, "Which imaging modality is this?", max_new_tokens=4)


def test_an_unreadable_image_is_named(assistant, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        assistant.ask([tmp_path / "broken.png"], "Which?")
