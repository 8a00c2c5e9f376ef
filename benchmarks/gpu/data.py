"""What gpu.py trains on: real medical pictures at their own sizes with text of many lengths.

    python -m benchmarks.gpu.data SOURCE          where the demo's packages are installed
    medx data build SOURCE DATA                   there or on the machine with the GPU

SOURCE is some MB: each picture once. Pictures are the demo's, from installed packages, but whole and up to 1,024 px;
texts are ICD-10-CM descriptions strung together (train_cpu_data.py). A sample has 32 to 1,500 text tokens and none to
three pictures, so some 40 % of the tokens are of images.
"""

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from transformers import AutoTokenizer

from benchmarks.train_cpu_data import Words
from megatron_medx.data.demo.build import build_demo
from megatron_medx.data.demo.pictures import PICTURES, Picture, package_folder, write_picture
from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.samples import SAMPLES_FILE

NUM_SAMPLES = 400

SHORTEST, MEDIAN, LONGEST, SPREAD = 32, 350, 1500, 0.9
"""Text tokens of a sample: log-normal, cut off at both ends; SPREAD is the standard deviation of the logarithm."""

IMAGES = (0, 0, 0, 1, 1, 1, 1, 2, 2, 3)
"""Pictures of a sample; one of these numbers is drawn for each."""

LONGEST_SIDE_PX, JPEG_QUALITY = 1024, 85


def write_source(folder: Path, num_samples: int = NUM_SAMPLES, seed: int = 0) -> None:
    """Write `samples.jsonl`, `images/` and `processor/` into a new folder.

    Args:
        folder: a new one.
        num_samples: how many; a longer list begins like a shorter one.
        seed: of everything that is drawn.

    Raises:
        DataError: a package of the demo's pictures is missing.
    """
    (folder / "images").mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="medx-") as scratch:
        build_demo(Path(scratch))
        shutil.move(Path(scratch) / "source" / "processor", folder / "processor")
    for picture in PICTURES:
        large_picture(picture).save(folder / jpeg_of(picture), quality=JPEG_QUALITY)
    tokenizer = AutoTokenizer.from_pretrained(folder / "processor", local_files_only=True)
    words = Words(tokenizer, random.Random(seed))
    lines = [json.dumps(make_sample(number, words), ensure_ascii=False) for number in range(num_samples)]
    (folder / SAMPLES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def jpeg_of(picture: Picture) -> str:
    """Where the source keeps a picture, relative to its folder."""
    return f"images/{picture.name}.jpg"


def large_picture(picture: Picture) -> Image.Image:
    """The picture as 8-bit RGB, as large as its package has it, but at most LONGEST_SIDE_PX."""
    if picture.file.endswith(".dcm"):
        larger = dataclasses.replace(picture, reduce=max(1, picture.reduce // 2))
        with tempfile.TemporaryDirectory(prefix="medx-") as scratch:
            write_picture(larger, Path(scratch))
            image = read_image(ImageFile(picture.name, (Path(scratch) / picture.path).read_bytes()))
    else:
        content = (package_folder(picture.package) / picture.file).read_bytes()
        image = read_image(ImageFile(picture.name, content))
        left, top, right, bottom = picture.box
        width, height = image.size
        image = image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))
    image.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.LANCZOS)
    return image


def make_sample(number: int, words: Words) -> dict:
    """A document, or a question with its answer, with its pictures in front."""
    draw = words.draw
    num_tokens = min(LONGEST, max(SHORTEST, round(MEDIAN * draw.lognormvariate(0.0, SPREAD))))
    pictures = draw.choices(PICTURES, k=draw.choice(IMAGES))
    images = [{"type": "image", "image": jpeg_of(picture)} for picture in pictures]
    if number % 2:
        return {"id": f"gpu-{number}", "content": [*images, {"type": "text", "text": words.text(num_tokens)}]}
    question = {"role": "user", "content": [*images, {"type": "text", "text": words.text(12)}]}
    return {"id": f"gpu-{number}", "messages": [question, {"role": "assistant", "content": words.text(num_tokens)}]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the source folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.data", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--samples", type=int, default=NUM_SAMPLES)
    chosen = parser.parse_args(arguments)
    write_source(chosen.source, chosen.samples)
    size = sum(path.stat().st_size for path in chosen.source.rglob("*") if path.is_file())
    print(f"{chosen.samples} samples, {len(PICTURES)} pictures, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
