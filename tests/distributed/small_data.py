"""A data folder that is small and awkward: many images or none, of any shape, one of them huge, and long texts.

Most samples have no image, so that microbatches, and now and then whole steps, are without one, packed or not.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from megatron_medx.data.builder.build import build_data
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.demo.corpus import read_hpo, read_icd, tokenizer_text
from megatron_medx.data.demo.tokenizer import write_processor

SIZES_PX = {
    "wide": (230, 60), "tall": (48, 150), "tiny": (20, 33), "square": (128, 128), "odd": (101, 77), "huge": (450, 260),
}  # fmt: skip
"""Image name -> width, height; up to 150,000 px `huge` keeps its size: half of all tokens that images have here."""

PICTURED = (("wide",), ("tall", "tiny", "wide"), ("square",), ("odd", "square"), ("tiny",), ("odd", "tall"), ("huge",))
"""Images of each sample that has some."""

NUM_TEXTS, NUM_LONG_TEXTS = 12, 8
"""A long text fills most of a row of 256 tokens."""


def write_small_data(folder: Path) -> Path:
    """Write and build a source in `folder/source` with the demo's tokenizer, which recipe `demo` fits."""
    records = [*_pictured_samples(), *_text_samples()]
    source = folder / "source"
    (source / "images").mkdir(parents=True)
    noise = np.random.default_rng(7)
    for name, (width, height) in SIZES_PX.items():
        pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / "images" / f"{name}.png")
    write_processor(source / "processor", tokenizer_text(read_icd(), read_hpo()[1], records))
    return build(source, folder, records)


def build(source: Path, folder: Path, records: list[dict]) -> Path:
    """Write the samples of a source and build the data folder."""
    (source / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    build_data(source, folder, BuildOptions(report_picture=False))
    return folder


def build_divided_by_zero(source: Path, folder: Path, records: list[dict]) -> Path:
    """Build a copy of a source, whose images become infinite when they are normalized: `image_std` is 0."""
    shutil.copytree(source, folder / "source")
    build(folder / "source", folder, records)
    settings = folder / "processor" / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"image_std": [0.0, 0.0, 0.0]}))
    return folder


def conversation(sample_id: str, question: str, answer: str, images: tuple[str, ...] = ()) -> dict:
    """One turn of question and answer as a line of samples.jsonl."""
    parts = [{"type": "image", "image": f"images/{name}.png"} for name in images]
    return {
        "id": sample_id,
        "messages": [
            {"role": "user", "content": [*parts, {"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
    }


def _pictured_samples() -> list[dict]:
    return [
        conversation(f"picture-{number}", "What is shown?", f"Noise, {len(images)} times, {images[0]}.", images)
        for number, images in enumerate(PICTURED)
    ]


def _text_samples() -> list[dict]:
    short = [
        conversation(f"text-{number}", f"Name finding {number}.", "Fracture of the left femur. " * (1 + number % 3))
        for number in range(NUM_TEXTS)
    ]
    sentence = "No acute abnormality of the chest. "
    return [
        *short,
        *(
            {"id": f"long-{number}", "content": [{"type": "text", "text": sentence * (26 + number)}]}
            for number in range(NUM_LONG_TEXTS)
        ),
    ]
