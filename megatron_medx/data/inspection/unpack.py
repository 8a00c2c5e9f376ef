"""A row taken apart again: for each sample its text in pieces with their weights, its images as pictures.

Comes in: a Microbatch as training gets it. Goes out: what pages for people show (preview.py, show.py). Only what is in
the row is looked at, so a mistake anywhere before shows.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from megatron_medx.data.chat import IMAGE_TOKEN
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.patches import Patcher

TEXT, SPECIAL, IMAGE = "text", "special", "image"
"""Kinds of pieces: words, special tokens, the placeholders of one image."""


@dataclass(slots=True)
class Piece:
    """Neighboring tokens of a sample that are of one kind and weigh the same."""

    kind: str
    text: str
    """Decoded; of an image `[n image tokens]`."""
    weight: float
    """In the loss, as tokens to be predicted."""
    start: int
    """Place of the first one in the row."""
    num_tokens: int


@dataclass(slots=True)
class RowSample:
    """One sample of a row."""

    sample_id: str
    start: int
    """Place of its first token in the row."""
    num_tokens: int
    pieces: list[Piece]
    pictures: list[Image.Image]
    """One for each piece that is an image, as the model sees it."""


def unpack_row(batch: Microbatch, tokenizer: PreTrainedTokenizerBase, patcher: Patcher) -> list[RowSample]:
    """The samples of a row, in order.

    Args:
        batch: with the pixels of all its images.
        tokenizer, patcher: of the dataset that made it.
    """
    patches_of_image = batch.pixels_PC.split(batch.grids_I3.prod(dim=1).tolist())
    pictures = map(patcher.unpatchify, patches_of_image, batch.grids_I3)
    # the weight of a token stands at the place that predicts it
    weights_S = torch.cat([torch.zeros(1), batch.loss_weights_1S[0, :-1]])
    samples = []
    # a padded tail has a start too, but no sample
    for sample_id, start, num_tokens in zip(
        batch.sample_ids, batch.cu_seqlens.tolist(), batch.sample_tokens, strict=False
    ):
        segment = slice(start, start + num_tokens)
        pieces = _pieces(batch.tokens_1S[0, segment].tolist(), weights_S[segment].tolist(), start, tokenizer)
        own = [next(pictures) for piece in pieces if piece.kind == IMAGE]
        samples.append(RowSample(sample_id, start, num_tokens, pieces, own))
    return samples


def _pieces(tokens: list[int], weights: list[float], start: int, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    kinds = dict.fromkeys(tokenizer.all_special_ids, SPECIAL) | {image_id: IMAGE}
    pieces = []
    for (weight, kind), run in groupby(
        zip(tokens, weights, strict=True), key=lambda pair: (pair[1], kinds.get(pair[0], TEXT))
    ):
        ids = [token for token, _ in run]
        text = f"[{len(ids)} image tokens]" if kind == IMAGE else tokenizer.decode(ids)
        pieces.append(Piece(kind, text, weight, start, len(ids)))
        start += len(ids)
    return pieces
