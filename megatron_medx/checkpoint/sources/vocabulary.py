"""Embedding and output matrix with rows for added tokens.

The rule, which the help text and the provenance of what is written repeat:
- tokens get the ids after the tokenizer's last one, in the order of the file;
- rows that the matrices already have there (Qwen pads 151,669 tokens to 151,936 rows) are taken first; if they do not
  suffice, the matrices grow to the next multiple of 128;
- a new token's row is the mean of the rows of the pieces that the old tokenizer cuts its text into, in both matrices
  alike (in a tied network they are one); a piece that occurs twice counts twice;
- rows beyond the last token that had to be made are the mean of the rows of all tokens of the old tokenizer.
Means are computed in float64 from the stored values and rounded to the dtype that is written.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from megatron_medx.checkpoint.content import Content
from megatron_medx.checkpoint.hugging_face.hf_directory import EMBEDDING, OUTPUT
from megatron_medx.checkpoint.layout.rules import Binding, bindings
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.sources.added_tokens import AddedTokens
from megatron_medx.errors import CheckpointError

ROW_MULTIPLE = 128
"""Rows grow to a multiple of it: any tensor parallelism up to 128 divides them, as it does Qwen's 151,936."""

RULE = (
    "ids after the tokenizer's last; free rows first, then up to a multiple of 128; a new row is the mean of the rows "
    "of its old pieces, a padding row that of all tokens' rows"
)
"""The rule in a line, for help and provenance."""

_BLOCK_ROWS = 4096
"""Rows that are widened to float64 at once."""


@dataclass(frozen=True, slots=True)
class GrownVocabulary:
    """Reads a network's groups, its two matrices of token rows with the new rows."""

    inner: Callable[[Binding], tuple[torch.Tensor, ...]]
    """Reads the network as it is."""
    groups: dict[str, Binding]
    """Megatron's key of a matrix of token rows -> its group as it is stored."""
    specs: dict[str, TensorSpec]
    """Hugging Face key of such a matrix -> as it will be written."""
    added: AddedTokens
    """The tokens."""

    def __call__(self, one: Binding) -> tuple[torch.Tensor, ...]:
        """Tensors of one group in Hugging Face layout."""
        stored = self.groups.get(one.megatron_key)
        if stored is None:
            return self.inner(one)
        (key,) = one.hf_keys
        (rows,) = self.inner(stored)
        return (grown_rows(rows, self.added, self.specs[key]),)


def with_added_tokens(content: Content, added: AddedTokens) -> Content:
    """Return a content whose network has rows for more tokens; its processor's files are the caller's to replace.

    Args:
        content: a whole network.
        added: tokens for the tokenizer in `content.processor_folder`.
    Raises:
        CheckpointError: that tokenizer has more tokens than the embedding has rows.
    """
    num_rows = content.model.vocab_size
    if added.num_before > num_rows:
        raise CheckpointError(
            f"a tokenizer of {added.num_before} tokens in {added.processor_folder}, an embedding of {num_rows} rows",
            "a row for every token",
            "use the tokenizer that belongs to these weights",
        )
    model = replace(content.model, vocab_size=grown_size(num_rows, added.num_after))
    grown = {key: (model.vocab_size, model.hidden_size) for key in (EMBEDDING, OUTPUT) if key in content.specs}
    specs = {key: replace(spec, shape=grown[key]) if key in grown else spec for key, spec in content.specs.items()}
    groups = {one.megatron_key: one for one in content.bound if grown.keys() & set(one.hf_keys)}
    read = GrownVocabulary(content.read, groups, {key: specs[key] for key in grown}, added)
    options = None if content.options is None else f"{content.options} {added.tokens}"
    return replace(content, model=model, bound=bindings(model), specs=specs, read=read, options=options)


def grown_size(num_rows: int, num_tokens: int) -> int:
    """Rows of the matrices: as many as they have if these suffice, else the next multiple of ROW_MULTIPLE.

    Example: 151,936 rows hold 151,700 tokens as they are; 151,937 tokens take 152,064.
    """
    return num_rows if num_tokens <= num_rows else -(-num_tokens // ROW_MULTIPLE) * ROW_MULTIPLE


def grown_rows(rows: torch.Tensor, added: AddedTokens, spec: TensorSpec) -> torch.Tensor:
    """Return a matrix of token rows with the added tokens' rows in it.

    Args:
        rows: (V, H) as stored; changed in place where the result has its shape and dtype, to hold it in memory once.
        added: tokens.
        spec: shape (V', H), V' >= V, and dtype of the result.

    Example: rows [1, 3, 5, 0] of 3 tokens and a free row, one token more with the pieces 0 and 2: [1, 3, 5, 3].
    """
    if (tuple(rows.shape), rows.dtype) == (spec.shape, spec.dtype):
        result = rows
    else:
        result = torch.empty(spec.shape, dtype=spec.dtype)
        result[: len(rows)] = rows
    for token in added.tokens:
        result[token.index] = rows[list(token.pieces)].double().mean(0)
    num_filled = max(len(rows), added.num_after)
    if num_filled < len(result):
        total = torch.zeros(spec.shape[1], dtype=torch.float64)
        for block in rows[: added.num_before].split(_BLOCK_ROWS):
            total += block.double().sum(0)
        result[num_filled:] = total / added.num_before
    return result


def growth_provenance(added: AddedTokens, before: Content, after: Content) -> dict[str, object]:
    """What run.yaml says of a grown vocabulary: the rule, rows before and after, and every token's id and pieces."""
    return {
        "rule": RULE,
        "rows": [before.model.vocab_size, after.model.vocab_size],
        "tokens": {token.text: {"id": token.index, "pieces": list(token.pieces)} for token in added.tokens},
    }
