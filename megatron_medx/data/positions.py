"""M-RoPE positions of one sample: where each token stands in time, height and width.

Comes in: token ids and image grids from `chat.py`. Goes out: positions for a microbatch. Knows no tokenizer.
"""

import torch

from megatron_medx.errors import DataError


def mrope_positions(
    tokens_S: torch.Tensor, grids_I3: torch.Tensor, image_token_id: int, merge_size: int
) -> torch.Tensor:
    """Positions (time, height, width) of every token of one sample, from 0.

    Text counts on in all three at once. An image of h x w tokens that starts at position p has time p, heights
    p..p+h-1 and widths p..p+w-1; the text behind it goes on at p + max(h, w).

    Args:
        tokens_S: (S,) int64; one image placeholder token for each merged image token.
        grids_I3: (I, 3) int64 patches along (frames, height, width), images in reading order; I may be 0.
        image_token_id: the placeholder's id.
        merge_size: a merge_size x merge_size block of patches is one token.

    Returns:
        (3, S) int64.

    Example (v is the placeholder; one image of 4 x 6 patches, so 2 x 3 tokens):

        tokens   a b v v v v v v c d
        time     0 1 2 2 2 2 2 2 5 6
        height   0 1 2 2 2 3 3 3 5 6
        width    0 1 2 3 4 2 3 4 5 6

    Raises:
        DataError: placeholders and grids do not fit; every later position would be wrong.
    Source: same as transformers 5.23 Qwen3VLModel.get_rope_index (tests/unit/data/test_positions.py).
    """
    is_image_S = tokens_S == image_token_id
    pieces: list[torch.Tensor] = []
    at = 0  # token that is placed next
    position = 0  # position it gets
    for number, (frames, height, width) in enumerate(grids_I3.tolist()):
        rows, columns = height // merge_size, width // merge_size
        num_tokens = frames * rows * columns
        ahead = is_image_S[at:].nonzero()
        num_text = int(ahead[0]) if len(ahead) else len(tokens_S) - at
        pieces.append(torch.arange(position, position + num_text).expand(3, -1))
        position += num_text
        at += num_text
        run = is_image_S[at : at + num_tokens]
        if int(run.sum()) != num_tokens:
            raise _misfit(f"{int(run.sum())} placeholder tokens in a row for image {number}", grids_I3, num_tokens)
        block = torch.cartesian_prod(torch.arange(frames), torch.arange(rows), torch.arange(columns))
        pieces.append(block.reshape(num_tokens, 3).T + position)
        position += max(rows, columns)
        at += num_tokens
    left_over = int(is_image_S[at:].sum())
    if left_over:
        raise _misfit(f"{left_over} placeholder tokens behind the last image", grids_I3, 0)
    pieces.append(torch.arange(position, position + len(tokens_S) - at).expand(3, -1))
    return torch.cat(pieces, dim=1)


def _misfit(found: str, grids_I3: torch.Tensor, needed: int) -> DataError:
    return DataError(
        f"{found} (grids {grids_I3.tolist()})",
        f"{needed} placeholder tokens",
        "expand each placeholder to the number of its image's merged tokens (megatron_medx/data/chat.py)",
    )
