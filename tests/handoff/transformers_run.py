"""Run exports in whichever transformers is first on the path; a program of its own, so that it may be another version.

    PYTHONPATH=.venv-transformers-4 python tests/handoff/transformers_run.py OUT.pt EXPORT...

Writes for each export what the test compares. It imports nothing of this repository.
"""

import sys
import warnings

import torch
import transformers
from PIL import Image

QUESTION = "Is there a pleural effusion?"
NUM_NEW_TOKENS = 6


def picture() -> Image.Image:
    """A gradient of uneven size, so that resizing and both sides of the grid count."""
    width, height = 90, 70
    across = torch.linspace(0, 255, width).expand(height, -1)
    down = torch.linspace(0, 255, height)[:, None].expand(-1, width)
    values = torch.stack([across, down, (across + down) / 2], dim=2).to(torch.uint8)
    return Image.fromarray(values.numpy())


def run(export: str) -> dict:
    """What this version of transformers reads in an export and computes with it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, loading = transformers.AutoModelForImageTextToText.from_pretrained(export, output_loading_info=True)
        processor = transformers.AutoProcessor.from_pretrained(export)
    model.eval()
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[prompt], images=[picture()], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
        output = model.generate(**inputs, max_new_tokens=NUM_NEW_TOKENS, do_sample=False)
    text = model.config.text_config
    rope = getattr(text, "rope_parameters", None) or {**text.rope_scaling, "rope_theta": text.rope_theta}
    return {
        "class": type(model).__name__,
        "dtype": str(model.dtype),
        "loading": {name: sorted(map(str, keys)) for name, keys in loading.items()},
        "warnings": [str(warning.message) for warning in caught],
        "num_experts": getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None),
        "rope_theta": rope["rope_theta"],
        "mrope_section": list(rope["mrope_section"]),
        "mrope_interleaved": rope["mrope_interleaved"],
        "image_size": dict(processor.image_processor.size),
        "input_ids": inputs["input_ids"][0],
        "pixel_values": inputs["pixel_values"],
        "image_grid_thw": inputs["image_grid_thw"],
        "logits": logits,
        "generated": output[0, inputs["input_ids"].shape[1] :],
    }


if __name__ == "__main__":
    torch.save({"version": transformers.__version__} | {name: run(name) for name in sys.argv[2:]}, sys.argv[1])
