"""Special tokens that a tokenizer gets: read from a file, given ids, and written into a copy of its directory.

Ids follow the tokenizer's last one, in the order of the file. What the old tokenizer makes of a new token's text, its
pieces, decides its row in the embedding (`vocabulary.py`). Nothing here knows a tensor.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from megatron_medx.config.processor import copy_known_files
from megatron_medx.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class NewToken:
    """One token to be added."""

    text: str
    """As it stands in the file."""
    index: int
    """Its id, and its row in embedding and output matrix."""
    pieces: tuple[int, ...]
    """Ids that the tokenizer had for this text before."""


@dataclass(frozen=True, slots=True)
class AddedTokens:
    """What is added to which tokenizer."""

    processor_folder: Path
    """Directory of the tokenizer as it is."""
    num_before: int
    """Ids up to the last one of that tokenizer: the rows that name a token."""
    tokens: tuple[NewToken, ...]
    """With ids num_before, num_before + 1, ..."""

    @property
    def num_after(self) -> int:
        """Ids up to the last new one."""
        return self.num_before + len(self.tokens)


def read_added_tokens(file: Path, processor_folder: Path) -> AddedTokens:
    """Read a file with one token a line, and say which ids and pieces they have with a tokenizer.

    Args:
        file: UTF-8.
        processor_folder: has the tokenizer.json.
    Raises:
        CheckpointError: file or tokenizer cannot be read, or a line is empty, ends in white space, occurs twice, is a
            token already, or is text of which the tokenizer makes nothing.
    """
    tokenizer = _tokenizer(processor_folder)
    texts = _lines(file)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    num_before = max(vocabulary.values()) + 1
    tokens = []
    for number, text in enumerate(texts):
        where = f"{file}, line {number + 1}: {text!r}"
        if text in vocabulary:
            raise CheckpointError(
                f"{where} is token {vocabulary[text]} already",
                "tokens that the tokenizer does not have",
                "remove the line, or choose another text",
            )
        pieces = tuple(tokenizer.encode(text, add_special_tokens=False).ids)
        if not pieces:
            raise CheckpointError(
                f"{where} gives no tokens with {processor_folder / TOKENIZER_FILE}",
                "text that the tokenizer has pieces for: their mean is the new token's row",
                "choose another text",
            )
        tokens.append(NewToken(text, num_before + number, pieces))
    return AddedTokens(processor_folder, num_before, tuple(tokens))


def write_processor(added: AddedTokens, out: Path) -> None:
    """Copy a processor's files, with the tokens in those that list tokens; all others stay as they are, byte for byte.

    Args:
        added: from `read_added_tokens`.
        out: folder to write into.
    """
    copied = copy_known_files(added.processor_folder, out)
    tokenizer = _tokenizer(added.processor_folder)
    tokenizer.add_special_tokens([AddedToken(token.text, special=True, normalized=False) for token in added.tokens])
    for token in added.tokens:
        found = tokenizer.encode(token.text, add_special_tokens=False).ids
        assert found == [token.index], f"{token} became {found}"
    tokenizer.save(str(out / TOKENIZER_FILE))
    # transformers 4 also reads added tokens from these; the keys of the first are texts.
    _extend(out / "tokenizer_config.json", added, _entry, section="added_tokens_decoder")
    if "added_tokens.json" in copied:
        _extend(out / "added_tokens.json", added, lambda token: (token.text, token.index))


def _extend(path: Path, added: AddedTokens, entry, section: str | None = None) -> None:
    """Add the tokens to a JSON object, or to one of its sections if it is there."""
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    table = content if section is None else content.get(section)
    if table is None:
        return
    table.update(map(entry, added.tokens))
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _entry(token: NewToken) -> tuple[str, dict]:
    """A line of `added_tokens_decoder`."""
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return str(token.index), {"content": token.text, **flags, "special": True}


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / TOKENIZER_FILE
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(
            f"{path} cannot be read: {error}",
            "a tokenizer beside the weights: it says which rows name tokens, and the output gets it with the new ones",
            "copy the tokenizer's files there, or leave --add-tokens out",
        ) from None


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}", "a text file, one token a line", "check it") from None
    for number, text in enumerate(lines, start=1):
        first = lines.index(text) + 1
        found = (
            "is empty"
            if not text
            else f"{text!r} begins or ends in white space"
            if text != text.strip()
            else f"{text!r} is line {first} again"
            if first < number
            else None
        )
        if found:
            raise CheckpointError(f"{file}, line {number} {found}", "one token a line, each once", "correct the file")
    return lines
