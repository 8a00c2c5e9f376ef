"""Samples as tokens: the chat template, the placeholders of images, and which tokens are learned.

Comes in: a `Sample`, its image files, a tokenizer with its chat template. Goes out: an `EncodedSample`, or for the
index only how long its text is. No pixel is decoded here: what each image will be scaled to is known from its size. The
template is the tokenizer's own, so a trained model and an engine that serves it see the same prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from megatron_medx.data.decoding import ImageRequest
from megatron_medx.data.image_grid import num_image_tokens
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.patches import Patcher
from megatron_medx.data.plan.budget import ImageExtent, fit
from megatron_medx.data.samples import ImagePart, Part, Sample, SampleNotes, TextPart
from megatron_medx.errors import DataError

IMAGE_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
"""What the chat template writes for an image; a document does the same."""

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"

TURN_END, DOCUMENT_END = "<|im_end|>", "<|endoftext|>"


class SampleTooLong(DataError):
    """No rule makes a sample short enough for a row."""


@dataclass(frozen=True, slots=True)
class TextSize:
    """What the index keeps of a sample's text."""

    tokens: int
    """Of the rendered sample, each image counted as the one placeholder it starts as."""
    image_spans: list[int]
    """For each image the tokens that go with it when a sample is shortened: its position, the two vision tokens and
    one placeholder; 0 for an image that always stays."""


@dataclass(slots=True)
class EncodedSample:
    """One sample, ready to be laid into a row."""

    sample_id: str
    tokens_S: torch.Tensor
    """(S,) int64; each image is a run of placeholder tokens, one for each merged token."""
    loss_weights_S: torch.Tensor
    """(S,) float32; the weight of its message (of a document 1) where this token is learned, 0 on prompt and images."""
    grids_I3: torch.Tensor
    """(I, 3) int64 patches along (frames, height, width) of each image; I may be 0."""
    images: list[ImageRequest] = field(default_factory=list)
    """The I images, not yet decoded."""
    folder: int = 0
    """Number, in the mixture, of the data folder that it was read from."""
    notes: SampleNotes = field(default_factory=SampleNotes)
    """What the sample says of itself."""


@dataclass(slots=True)
class SampleEncoder:
    """Encodes samples with one processor directory, for rows of one length."""

    tokenizer: PreTrainedTokenizerBase
    """A fast tokenizer with a chat template."""
    patcher: Patcher
    """Its limits of area are the run's."""
    seq_len_tokens: int
    """Longest sample; a longer one is shortened (budget.py)."""
    sample_align_tokens: int = 1
    """What the row rounds a sample up to; no token here is added for it."""
    max_row_patches: int = 0
    """Most patches of a sample's images; 0 is no limit."""

    def encode(self, sample: Sample, files: Mapping[str, ImageFile]) -> EncodedSample:
        """Tokens, learned tokens and images of a sample, shortened where it is too long for a row.

        Args:
            sample: of a data folder: its images have sizes.
            files: the images' files by the names that the sample has for them.

        Raises:
            SampleTooLong: no rule makes the sample short enough.
            DataError: placeholders and images differ in number.
        """
        tokens_S, weights_S = render_tokens(sample, self.tokenizer)
        at = placeholders(sample, tokens_S, self.tokenizer)
        spans = image_spans(sample, at)
        extents = [ImageExtent(*part.size, span) for part, span in zip(sample.images, spans, strict=True)]
        processor = self.patcher.processor
        limit = self.seq_len_tokens // self.sample_align_tokens * self.sample_align_tokens
        fitted = fit(
            len(tokens_S),
            extents,
            limit_tokens=limit,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
            patch_size=processor.patch_size,
            merge_size=processor.merge_size,
            max_patches=self.max_row_patches,
        )
        if fitted is None:
            raise too_long(sample.sample_id, len(tokens_S), len(extents), limit)
        repeats = torch.ones_like(tokens_S)
        for image in set(range(len(extents))) - set(fitted.kept):
            repeats[at[image] + 2 - spans[image] : at[image] + 2] = 0  # from behind the image before to its own end
        for image, grid in zip(fitted.kept, fitted.grids, strict=True):
            repeats[at[image]] = num_image_tokens(grid, self.patcher.merge_size)
        kept = [sample.images[image] for image in fitted.kept]
        return EncodedSample(
            sample.sample_id,
            tokens_S.repeat_interleave(repeats),
            weights_S.repeat_interleave(repeats),
            torch.tensor(fitted.grids, dtype=torch.int64).reshape(-1, 3),
            [ImageRequest(files[part.image], part.view, grid) for part, grid in zip(kept, fitted.grids, strict=True)],
            notes=sample.notes,
        )


def too_long(sample_id: str, text_tokens: int, num_images: int, limit_tokens: int) -> SampleTooLong:
    """The error for a sample that no rule makes short enough for a row."""
    return SampleTooLong(
        f"sample {sample_id} has {text_tokens} tokens, one for each of its {num_images} images",
        f"at most {limit_tokens} (data.seq_len_tokens, a multiple of data.sample_align_tokens)",
        "raise data.seq_len_tokens or split the sample; data.max_bad_fraction above 0 leaves such samples out",
    )


def measure_text(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> TextSize:
    """What the index says of a sample's text; no image is looked at.

    Raises:
        DataError: placeholders and images differ in number; the template is not built turn by turn.
    """
    tokens_S, _ = render_tokens(sample, tokenizer)
    return TextSize(len(tokens_S), image_spans(sample, placeholders(sample, tokens_S, tokenizer)))


def render_tokens(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> tuple[torch.Tensor, torch.Tensor]:
    """(S,) int64 tokens with one placeholder an image and (S,) float32 weights."""
    text, learned = render(sample, tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens_S = torch.tensor(encoded["input_ids"], dtype=torch.int64)
    return tokens_S, torch.tensor(_weights(encoded["offset_mapping"], learned))


def placeholders(sample: Sample, tokens_S: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where the placeholder of each image stands.

    Raises:
        DataError: there are more or fewer than images: the text itself holds such words.
    """
    image_id, video_id = tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, VIDEO_TOKEN])
    at, num_video = (tokens_S == image_id).nonzero()[:, 0].tolist(), int((tokens_S == video_id).sum())
    if len(at) != len(sample.images) or num_video:
        raise DataError(
            f"sample {sample.sample_id}: {len(at)} {IMAGE_TOKEN} and {num_video} {VIDEO_TOKEN} in the rendered text, "
            f"{len(sample.images)} images",
            f"one {IMAGE_TOKEN} for each image and no {VIDEO_TOKEN}",
            "take these words out of the sample's text; images are parts of type image",
        )
    return at


def image_spans(sample: Sample, at: list[int]) -> list[int]:
    """For each image the tokens that go with it when it is dropped, 0 where it always stays.

    An image may go if it has a position and follows directly on another that has one. Then nothing but its position
    stands between the two, and special tokens keep that text apart: so dropping it changes no other token.

    Args:
        at: from `placeholders`.

    Example: a sample `CT: <5 mm> I <10 mm> I <15 mm> I`, positions of three tokens each, placeholders at 8, 14 and 20:
    spans 0 6 6. The first image stays, as its position may share a token with the text before it.
    """
    spans: list[int] = []
    for parts in [sample.parts, *(message.parts for message in sample.messages)]:
        before: Part | None = None
        for part in parts:
            if isinstance(part, ImagePart):
                follows = isinstance(before, ImagePart) and before.position and part.position
                spans.append(at[len(spans)] - at[len(spans) - 1] if follows else 0)
            before = part
    return spans


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
        {"role": message.role, "content": [item for part in message.parts for item in _template_parts(part)]}
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
            text += part.position + IMAGE_PLACEHOLDER
        else:
            spans.append((len(text), len(text) + len(part.text), 1.0))
            text += part.text
    spans.append((len(text), len(text) + len(DOCUMENT_END), 1.0))
    return text + DOCUMENT_END, spans


def _template_parts(part: Part) -> list[dict[str, str]]:
    """What the template sees of a part: an image with a position is a text and an image."""
    if isinstance(part, TextPart):
        return [{"type": "text", "text": part.text}]
    position = [{"type": "text", "text": part.position}] if part.position else []
    return [*position, {"type": "image", "image": part.image}]


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
