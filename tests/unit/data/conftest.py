"""Small data folders made of the demo's."""

import json
from pathlib import Path

import pytest

from megatron_medx.config.model import ModelConfig, VisionConfig
from megatron_medx.config.processor import vision_token_ids
from megatron_medx.config.run import DataSection, RunConfig, RunSection
from megatron_medx.data.builder.build import build_data
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.demo.tokenizer import DEMO_MAX_PIXELS, DEMO_MIN_PIXELS


@pytest.fixture
def write_source(demo, tmp_path):
    """A function that makes a source of given records with the demo's images."""

    def write(records: list[dict | str], name: str = "source") -> Path:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        for image in (demo / "source" / "images").iterdir():
            (folder / "images" / image.name).symlink_to(image)
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return write


@pytest.fixture
def write_folder(demo, tmp_path, write_source):
    """A function that makes a data folder of given records with the demo's images."""

    def write(records: list[dict | str], name: str = "data") -> Path:
        options = BuildOptions(processor=demo / "processor", report_picture=False)
        build_data(write_source(records, f"{name}-source"), tmp_path / name, options)
        return tmp_path / name

    return write


@pytest.fixture
def run_config(demo):
    """A function that makes a RunConfig for a data folder, with the demo's processor."""

    def make(folder: Path, **data) -> RunConfig:
        vision = VisionConfig(hidden_size=16, num_layers=1, num_heads=2, ffn_hidden_size=16)
        sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
        model = ModelConfig(
            **sizes,
            ffn_hidden_size=32,
            vocab_size=4096,
            vision=vision,
            mrope_section=(4, 2, 2),
            **vision_token_ids(demo / "processor"),
        )
        settings = {"seq_len_tokens": 256, "min_pixels": DEMO_MIN_PIXELS, "max_pixels": DEMO_MAX_PIXELS} | data
        section = DataSection(path=str(folder) if folder else "", processor=str(demo / "processor"), **settings)
        return RunConfig(run=RunSection(seed=5), model=model, data=section)

    return make


@pytest.fixture
def chat():
    """A function that makes the record of one question and its answer."""

    def make(sample_id: str, question: str, answer: str, images: tuple[str, ...] = ()) -> dict:
        asked = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return {"id": sample_id, "messages": messages}

    return make
