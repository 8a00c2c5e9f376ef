"""How many bytes of text each token spells: what bits per byte divide by."""

import torch
from transformers import PreTrainedTokenizerBase


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """(V,) int64 UTF-8 bytes that each token spells; 0 for special tokens such as `<|im_end|>`, which are no text.

    Exact for a byte-level BPE, whose pieces have one character a byte. Added tokens that are no special ones, such as
    `<think>`, are text as they stand.

    Example: `Ġfemur` spells 6 bytes, its blank included; the two pieces of one `é` may spell 1 byte each.

    Args:
        tokenizer: a byte-level BPE, which Qwen's is.
    """
    pieces = tokenizer.get_vocab()
    num_bytes = torch.zeros(max(pieces.values()) + 1, dtype=torch.int64)
    for piece, token in pieces.items():
        num_bytes[token] = len(piece)
    for token, added in tokenizer.added_tokens_decoder.items():
        num_bytes[token] = 0 if added.special else len(added.content.encode())
    return num_bytes
