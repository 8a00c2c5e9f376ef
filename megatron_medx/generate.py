"""Asking an exported model questions about images: plain `transformers`, nothing of Megatron.

In: a Hugging Face directory as `medx convert to-hf` writes it, and DICOM or PNG files. Out: the answer's text.
It is the proof that an export needs no code of ours to be used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_medx.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Assistant:
    """A loaded model with its processor."""

    model: Any
    """`AutoModelForImageTextToText`, in evaluation mode."""
    processor: Any
    """`AutoProcessor` of the same directory."""

    @classmethod
    def load(cls, hf_dir: Path | str) -> "Assistant":
        """Load a Hugging Face directory with stock classes.

        Raises:
            CheckpointError: `hf_dir` is no Hugging Face directory.
        """
        hf_dir = Path(hf_dir)
        if not (hf_dir / "config.json").is_file():
            raise CheckpointError(
                f"no {hf_dir / 'config.json'}",
                "a Hugging Face directory",
                "export one with `medx convert to-hf CKPT OUT` and give its path",
            )
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()  # the answer alone belongs on the screen
        return cls(AutoModelForImageTextToText.from_pretrained(hf_dir).eval(), AutoProcessor.from_pretrained(hf_dir))

    def ask(self, images: Sequence[Path | str], question: str, max_new_tokens: int = 64) -> str:
        """Return the model's answer, decoded greedily.

        Args:
            images: DICOM, PNG or JPEG files, in the order in which the model sees them; may be empty.
            question: the user's turn.
            max_new_tokens: longest answer, tokens.

        Raises:
            DataError: an image cannot be read.
        """
        import torch

        from megatron_medx.data.images.files import read_image
        from megatron_medx.data.images.image_file import ImageFile

        pictures = [read_image(ImageFile.of(Path(image)), allow_burned_in=True) for image in images]
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
        turns = [{"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        inputs = self.processor(text=[prompt], images=pictures or None, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        answer = output[0, inputs["input_ids"].shape[1] :]
        return self.processor.decode(answer, skip_special_tokens=True).strip()
