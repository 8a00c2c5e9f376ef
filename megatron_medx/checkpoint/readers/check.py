"""Holds a Hugging Face directory against what vLLM, SGLang, verl and others expect of it. Headers only.

In: a directory, as `medx convert to-hf`, a trainer or the hub wrote it. Out: every expectation that it does not meet.
What a reader would do is in `tables.py` and `surroundings.py`; here is only the walk over them.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.checkpoint.hugging_face.hf_files import open_weight_files, read_config_json
from megatron_medx.checkpoint.readers.expectations import Key, Relation, Sources, Tensor
from megatron_medx.checkpoint.readers.surroundings import FILES, RELATIONS, TOKENS
from megatron_medx.checkpoint.readers.tables import (
    COUNTS,
    KEYS,
    ON_EXTRA_TENSOR,
    ON_MISSING_TENSOR,
    ON_TIED_HEAD,
    READERS,
    SIZES,
    TENSORS,
    TRANSFORMERS_5,
)
from megatron_medx.checkpoint.reports.layer_ranges import by_layer, joined
from megatron_medx.config.checkpoint_folders import CONFIG_FILE
from megatron_medx.errors import CheckpointError

ALL = "all"
"""In place of a reader: every one."""

_TIED_HEAD = "lm_head.weight"
_EXPORT_AGAIN = "write it with `medx convert to-megatron` and `medx convert to-hf`"


@dataclass(frozen=True, slots=True)
class Miss:
    """An expectation that is not met."""

    found: str
    needed: str
    do: str
    readers: Mapping[str, str]
    """Reader -> what it does then, or where it shows the expectation."""


def check(folder: Path, readers: str = ALL) -> tuple[Miss, ...]:
    """Return what a directory lacks for other programs; empty if it has all that they expect.

    Args:
        folder: Hugging Face directory of a whole Qwen3-VL.
        readers: a name of READERS, or ALL.
    Raises:
        CheckpointError: no such reader, or config.json or the weights cannot be read at all.
    """
    if readers != ALL and readers not in READERS:
        raise CheckpointError(
            f"reader {readers!r}", f"one of {', '.join((*READERS, ALL))}", "choose one of them after --for"
        )
    return tuple(_Check(Path(folder), tuple(READERS) if readers == ALL else (readers,)).misses())


class _Check:
    """One directory, opened, and the readers that it is held against."""

    def __init__(self, folder: Path, readers: tuple[str, ...]):
        self.folder, self.readers = folder, readers
        self.json = {CONFIG_FILE: read_config_json(folder / CONFIG_FILE)}
        self.stored = {key: file.specs[key].shape for key, file in open_weight_files(folder).items()}
        self.is_moe = self.value("model_type") == "qwen3_vl_moe"
        self.is_tied = self.value("tie_word_embeddings") is True

    def misses(self) -> Iterator[Miss]:
        """Every miss: first config.json, since shapes are told in its values."""
        yield from (miss for key in KEYS if self.concerns(key) and (miss := self.key_miss(key)))
        yield from (miss for one in RELATIONS if self.concerns(one) and (miss := self.relation_miss(one)))
        yield from self.token_misses()
        yield from self.file_misses()
        yield from self.tensor_misses()

    def concerns(self, expectation: Key | Relation | Tensor) -> bool:
        """Whether it is about this kind of network, and any of the readers has it."""
        return expectation.moe in (None, self.is_moe) and bool(self.of_readers(expectation.sources))

    def of_readers(self, sources: Sources) -> dict[str, str]:
        """The part of a table that is about the readers of this check."""
        return {reader: text for reader, text in sources.items() if reader in self.readers}

    def value(self, path: str) -> object:
        """The value at a path of config.json or `FILE:path`, also where transformers 5 writes it; None without one."""
        name, _, inside = path.rpartition(":")
        found = _inside(self.opened(name or CONFIG_FILE), inside)
        return self.value(TRANSFORMERS_5[path]) if found is None and path in TRANSFORMERS_5 else found

    def opened(self, name: str) -> dict:
        """A JSON file of the directory; empty where there is none."""
        if name not in self.json:
            path = self.folder / name
            try:
                self.json[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            except ValueError as error:
                raise CheckpointError(
                    f"{path} cannot be read: {error}", "a JSON file", "copy or download it again"
                ) from None
        return self.json[name]

    def key_miss(self, key: Key) -> Miss | None:
        """Whether config.json lacks a value, or states another than the readers take."""
        stated = [(path, value) for path in key.paths if (value := _inside(self.json[CONFIG_FILE], path)) is not None]
        readers = self.of_readers(key.sources)
        needed = " or ".join(key.paths) + (f" = {json.dumps(key.only[0])}" if key.only else f", {_kind(key.kind)}")
        if not stated:
            where = {reader: f"{key.otherwise} without it ({place})" for reader, place in readers.items()}
            return Miss(f"{CONFIG_FILE} without {key.paths[0]}", needed, self.remedy(key), where)
        path, value = stated[0]
        wrong_kind = not _is_kind(value, key.kind)
        if wrong_kind or (key.only and value not in key.only):
            return Miss(f"{CONFIG_FILE}: {path} is {json.dumps(value)}", needed, self.remedy(key), readers)
        return None

    def remedy(self, key: Key) -> str:
        """What mends a key: a directory that transformers 5 wrote holds it elsewhere."""
        moved = TRANSFORMERS_5.get(key.paths[0])
        is_moved = moved is not None and _inside(self.json[CONFIG_FILE], moved) is not None
        return f"transformers 5 wrote it as {moved}: {_EXPORT_AGAIN}" if is_moved else "state it in config.json"

    def relation_miss(self, relation: Relation) -> Miss | None:
        """Whether values contradict each other; those that are not stated are told elsewhere."""
        values = {path: self.value(path) for path in relation.shown}
        if None in values.values() or not self.are_sound(values) or relation.holds(self.value):
            return None
        found = ", ".join(f"{path} is {json.dumps(value)}" for path, value in values.items())
        return Miss(found, relation.needed, relation.do, self.of_readers(relation.sources))

    def are_sound(self, values: Mapping[str, object]) -> bool:
        """Whether values are of the kinds that KEYS say; others are misses of their own."""
        kinds = {key.paths[0]: key.kind for key in KEYS}
        return all(_is_kind(value, kinds[path]) for path, value in values.items() if path in kinds)

    def token_misses(self) -> Iterator[Miss]:
        """Special tokens whose number differs between config.json and the tokenizer."""
        added = {entry["content"]: entry["id"] for entry in self.opened("tokenizer.json").get("added_tokens", ())}
        for token in TOKENS if added else ():
            stated, readers = self.value(token.path), self.of_readers(token.sources)
            if readers and stated != added.get(token.text):
                yield Miss(
                    f"{token.path} is {stated}, tokenizer.json has {token.text} as {added.get(token.text)}",
                    "one number for both",
                    f"state {added.get(token.text)} in {CONFIG_FILE}, or take the tokenizer of this network",
                    readers,
                )
        vocab_size = self.value("text_config.vocab_size")
        if added and isinstance(vocab_size, int) and max(added.values()) >= vocab_size:
            yield Miss(
                f"text_config.vocab_size is {vocab_size}, tokenizer.json goes up to id {max(added.values())}",
                "a row of the embedding for every token",
                "take the tokenizer of this network, or train one with more rows",
                dict.fromkeys(self.readers, "reads beyond the embedding"),
            )

    def file_misses(self) -> Iterator[Miss]:
        """Files that are not there."""
        for file in FILES:
            readers = self.of_readers(file.sources)
            if readers and not any((self.folder / name).is_file() for name in file.names):
                yield Miss(
                    f"no {' or '.join(file.names)} in {self.folder}",
                    f"{file.names[0]} beside the weights",
                    "copy it from the processor that the network was trained with",
                    {reader: f"{file.otherwise} without it ({place})" for reader, place in readers.items()},
                )

    def tensor_misses(self) -> Iterator[Miss]:
        """Tensors that are missing, of another shape, or not known; those of a row in one miss."""
        expected = set()
        for row in (row for row in TENSORS if self.concerns(row) and not (row.untied and self.is_tied)):
            names = self.names(row)
            expected.update(names)
            missing = [name for name in names if name not in self.stored]
            if missing:
                readers = self.of_readers({one: text for one, text in ON_MISSING_TENSOR.items() if one in row.sources})
                yield Miss(f"weights without {joined(missing)}", f"it, [{row.shape}]", _EXPORT_AGAIN, readers)
            yield from self.shape_misses(row, [name for name in names if name in self.stored])
        extra = [{"name": name} for name in sorted(self.stored.keys() - expected)]
        for name in by_layer(extra, lambda tensor: None):
            tied = name == _TIED_HEAD and self.is_tied
            if readers := self.of_readers(ON_TIED_HEAD if tied else ON_EXTRA_TENSOR):
                needed = "the embedding alone: tie_word_embeddings is true" if tied else "no tensors that nobody reads"
                yield Miss(f"weights with {name}", needed, _EXPORT_AGAIN, readers)

    def names(self, row: Tensor) -> list[str]:
        """A row's names with their numbers filled in."""
        if "*" not in row.name:
            return [row.name]
        count = self.value(COUNTS[row.name[: row.name.index("*") + 1]])
        number = len(count) if isinstance(count, list) else count
        return [row.name.replace("*", str(index)) for index in range(number if isinstance(number, int) else 0)]

    def shape_misses(self, row: Tensor, names: list[str]) -> Iterator[Miss]:
        """The shapes of a row's tensors that a reader does not take."""
        shape, also = self.shape(row.shape), {reader: self.shape(words) for reader, words in row.also}
        if shape is None:
            return  # the size that config.json does not state is a miss of its own
        by_shape = defaultdict(list)
        for name in names:
            by_shape[self.stored[name]].append(name)
        for found, alike in by_shape.items():
            readers = self.of_readers(row.sources)
            against = {reader: place for reader, place in readers.items() if found not in (shape, also.get(reader))}
            if against:
                needed = f"{list(shape)} [{row.shape}]"
                yield Miss(f"{joined(alike)} {list(found)}", needed, self.shape_remedy(found, shape), against)

    def shape(self, words: str) -> tuple[int, ...] | None:
        """Sizes of a shape in words; None where config.json does not state one of them."""
        sizes = {letter: self.value(path) for letter, path in SIZES.items()}
        factors = [[int(one) if one.isdigit() else sizes[one] for one in word] for word in words.split()]
        if not all(isinstance(one, int) for dim in factors for one in dim):
            return None
        return tuple(math.prod(dim) for dim in factors)

    def shape_remedy(self, found: tuple[int, ...], shape: tuple[int, ...]) -> str:
        """What mends a wrong shape; two causes are known by their looks."""
        if len(found) == 3 and found == (shape[0], shape[2], shape[1]):
            return f"transformers 5 wrote the experts turned around: {_EXPORT_AGAIN}"
        if found[1:] == shape[1:] and shape[0] == self.value("text_config.vocab_size"):
            return "rows that no token has, or a wrong text_config.vocab_size: export without padding, or correct it"
        return f"check that {CONFIG_FILE} belongs to these weights"


def _inside(found: object, path: str) -> object:
    """The value at a dotted path; None where any part of it is absent."""
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _kind(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", list: "a list", str: "a word"}[kind]


def _is_kind(value: object, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)
