"""What the two tasks of this folder compute from a line of questions.jsonl: {"image", "question", "answer"}."""

from collections import defaultdict
from pathlib import Path

from datasets import Dataset
from PIL import Image

from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.image_file import ImageFile

SOURCE = Path("data/demo/source")
"""Image paths count from here; `medx data demo data/demo` writes it."""


def pictures(line: dict) -> list[Image.Image]:
    """The image of a question, DICOM files included."""
    return [read_image(ImageFile.of(SOURCE / line["image"]), allow_burned_in=True)]


def with_choices(lines: Dataset) -> Dataset:
    """Each question with all answers that any image has for it."""
    answers = defaultdict(set)
    for line in lines:
        answers[line["question"]].add(line["answer"])
    return lines.map(lambda line: {"choices": sorted(answers[line["question"]])})
