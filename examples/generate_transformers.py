"""Load an export with stock transformers and ask it about a picture: nothing of this package is imported.

    python examples/generate_transformers.py runs/demo/hf --image chest.png --question "Which imaging modality is this?"

Runs with transformers 5 and 4.57.
"""

import argparse

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


def main(words: list[str] | None = None) -> str:
    """Print the answer, decoded greedily, and return it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", nargs="?", default="runs/demo/hf", help="Hugging Face directory")
    parser.add_argument("--image", default="data/demo/source/images/fundus.png", help="a file that Pillow reads")
    parser.add_argument("--question", default="Which imaging modality is this?")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    args = parser.parse_args(words)

    processor = AutoProcessor.from_pretrained(args.export)
    model = AutoModelForImageTextToText.from_pretrained(args.export).eval()
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": args.question}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    with Image.open(args.image) as image:
        inputs = processor(text=[prompt], images=[image.convert("RGB")], return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(answer)
    return answer


if __name__ == "__main__":
    main()
