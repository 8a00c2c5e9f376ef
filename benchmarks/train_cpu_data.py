"""What train_cpu.py trains on: samples of the demo's texts and pictures, of many lengths or of one.

Written as a source folder and built by the program's own `medx data build`. Texts are ICD-10-CM descriptions strung
together, pictures those of the demo, at their own sizes.
"""

import json
import random
import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_medx.data.builder.build import build_data
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.demo.build import build_demo
from megatron_medx.data.demo.corpus import read_icd
from megatron_medx.data.demo.pictures import PICTURES
from megatron_medx.data.samples import SAMPLES_FILE

NUM_SAMPLES = 400

SHORTEST, MEDIAN, LONGEST, SPREAD = 16, 90, 700, 1.0
"""Text tokens of mixed samples: log-normal, cut off at both ends; SPREAD is the standard deviation of the logarithm."""

EQUAL_TOKENS = 256
"""Tokens of every sample of the equal-length text."""

IMAGES = (0, 0, 0, 0, 1, 1, 1, 1, 1, 2)
"""Pictures of a mixed sample; one of these numbers is drawn for each."""


def build_workload(name: str, folder: Path, seed: int = 0) -> Path:
    """Build the data folder of a workload.

    Args:
        name: `mixed` (variable length, pictures in half of the samples) or `equal` (text of EQUAL_TOKENS tokens).
        folder: where it is made; a new one.
        seed: of everything that is drawn.

    Returns:
        The data folder.
    """
    demo, source = folder / "demo", folder / "source"
    build_demo(demo)
    source.mkdir()
    for part in ("processor", "images"):
        shutil.move(demo / "source" / part, source / part)
    tokenizer = AutoTokenizer.from_pretrained(source / "processor", local_files_only=True)
    words = Words(tokenizer, random.Random(seed))
    make = mixed_sample if name == "mixed" else equal_sample
    lines = [json.dumps(make(number, words), ensure_ascii=False) for number in range(NUM_SAMPLES)]
    (source / SAMPLES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    build_data(source, folder / "data", BuildOptions())
    return folder / "data"


class Words:
    """Text of as many tokens as asked for, from ICD-10-CM descriptions in random order."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, draw: random.Random):
        self.draw, self._tokenizer = draw, tokenizer
        self._descriptions = [description for _, description in read_icd()]

    def text(self, num_tokens: int) -> str:
        """Text that the tokenizer cuts into exactly so many tokens."""
        tokens: list[int] = []
        while len(tokens) < 2 * num_tokens:
            tokens += self._tokenizer(f"{self.draw.choice(self._descriptions)}. ", add_special_tokens=False)[
                "input_ids"
            ]
        for length in range(num_tokens, len(tokens)):  # a cut may leave half a word, which is cut differently
            text = self._tokenizer.decode(tokens[:length])
            found = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            if found == num_tokens:
                return text
            if found > num_tokens:
                break
        return self.text(num_tokens)


def mixed_sample(number: int, words: Words) -> dict:
    """A document, or a question with its answer; half of all with pictures in front."""
    draw = words.draw
    num_tokens = min(LONGEST, max(SHORTEST, round(MEDIAN * draw.lognormvariate(0.0, SPREAD))))
    pictures = draw.choices(PICTURES, k=draw.choice(IMAGES))
    images = [{"type": "image", "image": picture.path} for picture in pictures]
    if number % 2:
        return {"id": f"mixed-{number}", "content": [*images, {"type": "text", "text": words.text(num_tokens)}]}
    question = {"role": "user", "content": [*images, {"type": "text", "text": words.text(8)}]}
    return {"id": f"mixed-{number}", "messages": [question, {"role": "assistant", "content": words.text(num_tokens)}]}


def equal_sample(number: int, words: Words) -> dict:
    """A document of EQUAL_TOKENS tokens, the one that ends it included."""
    return {"id": f"equal-{number}", "content": words.text(EQUAL_TOKENS - 1)}
