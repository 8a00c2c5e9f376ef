"""Samples as tokens: the chat template, the placeholders of images, and which tokens are learned.

Comes in: a `Sample`, a tokenizer with its chat template, a `Patcher`. Goes out: an `EncodedSample`, or only its
length for the plan, for which no pixel is decoded. The template is the tokenizer's own, so a trained model and an
engine that serves it see the same prompt.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from megatron_medx.data.images.files import image_size, read_image
from megatron_medx.data.patches import Patcher, num_image_tokens
from megatron_medx.data.plan import aligned_tokens
from megatron_medx.data.samples import ImagePart, Sample
from megatron_medx.errors import DataError

IMAGE_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
"""What the chat template writes for an image; a document does the same."""

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"

TURN_END, DOCUMENT_END = "<|im_end|>", "<|endoftext|>"


@dataclass(slots=True)
class EncodedSample:
    """One sample, ready to be laid into a row."""

    sample_id: str
    tokens_S: torch.Tensor
    """(S,) int64; each image is a run of placeholder tokens, one for each merged token."""
    loss_weights_S: torch.Tensor
    """(S,) float32; the weight of its message (of a document 1) where this token is learned, 0 on prompt and images."""
    pixels_PC: torch.Tensor
    """(P, C) float32 patches of all images; P may be 0."""
    grids_I3: torch.Tensor
    """(I, 3) int64; I may be 0."""


@dataclass(slots=True)
class SampleSize:
    """What a sample will take, as far as headers tell: all that the plan and the deal of rows ask."""

    tokens: int
    """Text and image tokens."""
    patches_per_image: list[int]
    """Patches before merging, one entry for each frame of each image: attention stays within a frame."""


@dataclass(slots=True)
class SampleEncoder:
    """Encodes samples of one data folder with one processor directory."""

    tokenizer: PreTrainedTokenizerBase
    """A fast tokenizer with a chat template."""
    patcher: Patcher
    folder: Path
    """The data folder; image paths are relative to it."""
    seq_len_tokens: int
    """Longest sample allowed, in text and image tokens, rounded up as below."""
    sample_align_tokens: int = 1
    """What the row rounds a sample up to; no token here is added for it."""
    allow_burned_in: bool = False
    """Whether images may have text burned in by their own header's word."""

    def measure(self, sample: Sample) -> SampleSize:
        """Tokens and patches `encode` will give, from the text and the headers of the image files.

        Raises:
            DataError: as `encode`, as far as headers can tell.
        """
        grids = [
            self.patcher.grid(*image_size(self.folder / part.image, part.view, self.allow_burned_in))
            for part in sample.images
        ]
        patches = [height * width for frames, height, width in grids for _ in range(frames)]
        return SampleSize(len(self._tokens(sample, grids)[0]), patches)

    def encode(self, sample: Sample) -> EncodedSample:
        """Tokens, learned tokens and patches of a sample.

        Raises:
            DataError: an image cannot be read; placeholders and images differ in number; the sample is too long.
        """
        patches = [
            self.patcher.patchify(read_image(self.folder / part.image, part.view, self.allow_burned_in))
            for part in sample.images
        ]
        grids = [tuple(grid.tolist()) for _, grid in patches]
        tokens_S, loss_weights_S = self._tokens(sample, grids)
        pixels = [pixels_PC for pixels_PC, _ in patches]
        return EncodedSample(
            sample.sample_id,
            tokens_S,
            loss_weights_S,
            torch.cat(pixels) if pixels else torch.zeros(0, self.patcher.patch_dim),
            torch.tensor(grids, dtype=torch.int64).reshape(-1, 3),
        )

    def _tokens(self, sample: Sample, grids: list[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(S,) int64 tokens with expanded placeholders and (S,) float32 weights."""
        text, learned = render(sample, self.tokenizer)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = torch.tensor(encoded["input_ids"], dtype=torch.int64)
        weights = torch.tensor(_weights(encoded["offset_mapping"], learned))
        image_id, video_id = self.tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, VIDEO_TOKEN])
        is_image = tokens == image_id
        if int(is_image.sum()) != len(grids) or bool((tokens == video_id).any()):
            raise DataError(
                f"sample {sample.sample_id}: {int(is_image.sum())} {IMAGE_TOKEN} and {int((tokens == video_id).sum())} "
                f"{VIDEO_TOKEN} in the rendered text, {len(grids)} images",
                f"one {IMAGE_TOKEN} for each image and no {VIDEO_TOKEN}",
                "take these words out of the sample's text; images are parts of type image",
            )
        counts = [num_image_tokens(grid, self.patcher.merge_size) for grid in grids]
        repeats = torch.ones_like(tokens)
        repeats[is_image] = torch.tensor(counts, dtype=torch.int64)
        length = int(repeats.sum())
        aligned = aligned_tokens(length, self.sample_align_tokens)
        if aligned > self.seq_len_tokens:
            rounded = f" (rounded up to {aligned})" if aligned > length else ""
            raise DataError(
                f"sample {sample.sample_id} has {length} tokens{rounded}, {sum(counts)} of them of {len(grids)} images",
                f"at most data.seq_len_tokens = {self.seq_len_tokens}",
                "raise data.seq_len_tokens, lower data.max_pixels, or split the sample",
            )
        return tokens.repeat_interleave(repeats), weights.repeat_interleave(repeats)


LearnedSpan = tuple[int, int, float]
"""Characters [start, end) of a text and the weight of each token in them."""


def render(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[LearnedSpan]]:
    """The text a sample becomes, one placeholder an image, and the spans of it that are learned.

    A conversation is rendered by the chat template; learned, with the message's weight, is each assistant turn after
    its header up to and with `<|im_end|>`. The spans come from rendering the conversation turn by turn, not from
    searching for markers: a user who writes `<|im_start|>assistant` changes nothing. A document is learned whole but
    for its images, with weight 1, and ends in `<|endoftext|>`.

    Raises:
        DataError: the template is not built turn by turn, so no span can be known.
    """
    if sample.parts:
        return _render_document(sample)
    messages = [
        {"role": message.role, "content": [_template_part(part) for part in message.parts]}
        for message in sample.messages
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for index, message in enumerate(sample.messages):
        if message.role != "assistant":
            continue
        # the template cannot render zero messages; a first assistant turn stands behind nothing
        before = tokenizer.apply_chat_template(messages[:index], tokenize=False) if index else ""
        turn = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
        header = "<|im_start|>assistant\n"
        start, end = len(before) + len(header), turn.rfind(TURN_END) + len(TURN_END)
        if not (text.startswith(turn) and turn.startswith(before + header) and start < end):
            raise DataError(
                f"sample {sample.sample_id}: its first {index + 1} messages are rendered otherwise than in the whole",
                "a chat template that only appends, such as Qwen3-VL's",
                "put Qwen3-VL's chat_template.jinja into the processor directory",
            )
        spans.append((start, end, message.weight))
    return text, spans


def _render_document(sample: Sample) -> tuple[str, list[LearnedSpan]]:
    text, spans = "", []
    for part in sample.parts:
        if isinstance(part, ImagePart):
            text += IMAGE_PLACEHOLDER
        else:
            spans.append((len(text), len(text) + len(part.text), 1.0))
            text += part.text
    spans.append((len(text), len(text) + len(DOCUMENT_END), 1.0))
    return text + DOCUMENT_END, spans


def _template_part(part: object) -> dict[str, str]:
    if isinstance(part, ImagePart):
        return {"type": "image", "image": part.image}
    return {"type": "text", "text": part.text}


def _weights(offsets: list[tuple[int, int]], learned: list[LearnedSpan]) -> list[float]:
    """The span's weight for each token that starts inside a learned span, 0 for others.

    A token that begins in the header and reaches into the answer (an answer that starts with a line break) stays
    prompt, as at inference. Both lists ascend, so one walk is enough.

    Example: learned [(4, 9, 0.5)], offsets [(0, 3), (3, 5), (5, 8), (8, 9), (9, 10)] -> [0, 0, 0.5, 0.5, 0].
    """
    weights, at = [], 0
    for start, _ in offsets:
        while at < len(learned) and learned[at][1] <= start:
            at += 1
        weights.append(learned[at][2] if at < len(learned) and learned[at][0] <= start else 0.0)
    return weights
