"""Asking an exported model a question about images: plain `transformers`, nothing of Megatron.

In: a Hugging Face directory as `medx convert to-hf` writes it, and DICOM or PNG files. Out: the answer's text.
It is the proof that an export needs no code of ours to be used.
"""

from pathlib import Path

from megatron_medx.errors import CheckpointError


def generate(hf_dir: Path | str, images: list[Path | str], question: str, max_new_tokens: int = 64) -> str:
    """Return the model's answer, decoded greedily.

    Args:
        hf_dir: Hugging Face directory with weights, tokenizer and processor files.
        images: DICOM, PNG or JPEG files, in the order in which the model sees them; may be empty.
        question: the user's turn.
        max_new_tokens: longest answer, tokens.

    Raises:
        CheckpointError: `hf_dir` is no Hugging Face directory.
        DataError: an image cannot be read.
    """
    hf_dir = Path(hf_dir)
    if not (hf_dir / "config.json").is_file():
        raise CheckpointError(
            f"no {hf_dir / 'config.json'}",
            "a Hugging Face directory",
            "export one with `medx convert to-hf CKPT OUT` and give its path",
        )
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    from megatron_medx.data.images import read_image

    pictures = [read_image(Path(image)) for image in images]
    logging.disable_progress_bar()  # the answer alone belongs on the screen
    processor = AutoProcessor.from_pretrained(hf_dir)
    model = AutoModelForImageTextToText.from_pretrained(hf_dir).eval()
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=[prompt], images=pictures or None, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    return processor.decode(answer, skip_special_tokens=True).strip()
