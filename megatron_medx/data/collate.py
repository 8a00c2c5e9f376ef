"""Samples laid side by side: one row, as a microbatch."""

from itertools import accumulate, pairwise

import torch

from megatron_medx.data.chat import EncodedSample
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.plan.row_plan import aligned_tokens
from megatron_medx.data.positions import mrope_positions
from megatron_medx.errors import DataError


def collate(
    samples: list[EncodedSample],
    pixels_PC: torch.Tensor,
    *,
    image_token_id: int,
    merge_size: int,
    pad_token_id: int = 0,
    sample_align_tokens: int = 1,
    align_tokens: int = 1,
    pad_to_tokens: int | None = None,
) -> Microbatch:
    """Lay samples side by side into one row.

    Args:
        samples: at least one; their order is kept.
        pixels_PC: (P, C) float32 patches of the images that are wanted.
        pad_token_id, sample_align_tokens: each sample is padded with this token to a multiple of so many.
        align_tokens, pad_to_tokens: of `padded_tokens`.

    Example: samples [5, 6, 7] (weights 0, 1, 1) and [8, 9] (weights 0, 1), align_tokens 4:

        tokens      5 6 7 8 9 0 0 0
        labels      6 7 0 9 0 0 0 0      the next token of the same sample
        weights     1 1 0 1 0 0 0 0      the weight of that next token
        positions   0 1 2 0 1 0 1 2      from 0 in every segment (here without images, in all three axes)
        cu_seqlens  0 3 5 8              the tail is a segment of its own

    With sample_align_tokens 4 the tokens are 5 6 7 0 8 9 0 0 and cu_seqlens 0 4 8; sample_tokens stay 3 2.

    Raises:
        DataError: the samples, aligned, have more than pad_to_tokens tokens.
    """
    borders = [0, *accumulate(aligned_tokens(len(sample.tokens_S), sample_align_tokens) for sample in samples)]
    length = padded_tokens(borders[-1], align_tokens, pad_to_tokens)
    if borders[-1] > length:
        found = f"a row of {borders[-1]} tokens (samples {', '.join(sample.sample_id for sample in samples)})"
        raise DataError(found, f"at most {length} tokens", "raise data.seq_len_tokens")
    tokens = torch.full((length,), pad_token_id)
    labels, weights, positions = torch.zeros_like(tokens), torch.zeros(length), tokens.new_empty(3, length)
    for sample, (start, end) in zip(samples, pairwise(borders), strict=True):
        segment = slice(start, end)
        _write(sample, tokens[segment], labels[segment], weights[segment])
        positions[:, segment] = mrope_positions(tokens[segment], sample.grids_I3, image_token_id, merge_size)
    positions[:, borders[-1] :] = torch.arange(length - borders[-1])
    return Microbatch(
        tokens_1S=tokens[None],
        labels_1S=labels[None],
        loss_weights_1S=weights[None],
        positions_3S=positions,
        cu_seqlens=torch.tensor(sorted({*borders, length}), dtype=torch.int32),
        pixels_PC=pixels_PC,
        grids_I3=torch.cat([sample.grids_I3 for sample in samples]),
        vision_index_M=(tokens == image_token_id).nonzero()[:, 0],
        sample_ids=[sample.sample_id for sample in samples],
        sample_tokens=[len(sample.tokens_S) for sample in samples],
        sample_folders=[sample.folder for sample in samples],
        sample_notes=[sample.notes for sample in samples],
    )


def padded_tokens(tokens: int, align_tokens: int, pad_to_tokens: int | None) -> int:
    """Tokens of a row, padding included.

    Args:
        tokens: of its samples, each aligned.
        align_tokens: behind the last segment the row is padded to a multiple of this.
        pad_to_tokens: pad the row to exactly this many tokens instead (a multiple of align_tokens).
    """
    return aligned_tokens(tokens, align_tokens) if pad_to_tokens is None else pad_to_tokens


def _write(sample: EncodedSample, tokens_L: torch.Tensor, labels_L: torch.Tensor, weights_L: torch.Tensor) -> None:
    """Write a sample to the start of its segment; what it does not fill stays padding, with label and weight 0.

    Example: [5, 6, 7] with weights 0, 1, 1 in a segment of 4 gives tokens 5 6 7 0, labels 6 7 0 0, weights 1 1 0 0.
    Positions, worked out from these tokens, count on through the padding as through text: 0 1 2 3.
    """
    end = len(sample.tokens_S)
    learned = sample.loss_weights_S[1:]
    tokens_L[:end] = sample.tokens_S
    weights_L[: end - 1] = learned
    labels_L[: end - 1] = torch.where(learned > 0, sample.tokens_S[1:], 0)
