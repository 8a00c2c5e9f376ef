"""Samples: the lines of `samples.jsonl`, checked and typed.

A data folder holds `samples.jsonl` and `images/`. A line is a conversation or an interleaved document:

    {"id": "cr-1", "messages": [{"role": "user", "content": [{"type": "image", "image": "images/chest.dcm"},
                                                             {"type": "text", "text": "Which modality?"}]},
                                {"role": "assistant", "content": [{"type": "text", "text": "X-ray"}]}]}
    {"id": "doc-7", "content": [{"type": "text", "text": "Figure 1."}, {"type": "image", "image": "images/f1.png"}]}

with `modality`, `source` and `license` beside it if they are known. Nothing here opens an image or knows a tokenizer.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.errors import DataError

SAMPLES_FILE = "samples.jsonl"

ROLES = ("system", "user", "assistant")

NOTES = ("modality", "source", "license")
"""Optional fields, text, that say where a sample comes from; no training step reads them."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image file, as a path relative to the data folder."""

    image: str


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation (`messages`) or one interleaved document (`parts`); the other of the two is empty."""

    sample_id: str
    messages: tuple[Message, ...] = ()
    parts: tuple[Part, ...] = ()
    modality: str = ""
    source: str = ""
    license: str = ""

    @property
    def image_paths(self) -> list[str]:
        """Image files relative to the data folder, in reading order."""
        parts = [part for message in self.messages for part in message.parts] + list(self.parts)
        return [part.image for part in parts if isinstance(part, ImagePart)]


def read_samples(folder: Path) -> list[Sample]:
    """All samples of a data folder, in file order.

    Raises:
        DataError: no such file, no sample in it, or a line that is not a sample; names file, line and sample id.
    """
    path = Path(folder) / SAMPLES_FILE
    if not path.is_file():
        raise DataError(
            f"no file {path}",
            f"a data folder with {SAMPLES_FILE} and images/",
            "set data.path to such a folder; `make demo` builds one",
        )
    samples: list[Sample] = []
    line_of_id: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        sample = _sample(_record(line, path, number), path, number)
        first = line_of_id.setdefault(sample.sample_id, number)
        if first != number:
            raise _bad_line(
                path, number, sample.sample_id, f"the id stands on line {first} already", "ids that occur once"
            )
        samples.append(sample)
    if not samples:
        raise DataError(f"{path} holds no sample", "at least one line", "write samples to it, one JSON object a line")
    return samples


def _record(line: bytes, path: Path, number: int) -> dict:
    try:
        record = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _bad_line(path, number, None, f"not JSON ({error})", "one JSON object a line, UTF-8") from error
    if not isinstance(record, dict):
        raise _bad_line(path, number, None, f"a JSON {type(record).__name__}", "one JSON object a line")
    return record


def _sample(record: dict, path: Path, number: int) -> Sample:
    sample_id = record.get("id")
    if not isinstance(sample_id, str) or not sample_id:
        raise _bad_line(path, number, None, f"id {sample_id!r}", "an id that is a text")
    unknown = sorted(set(record) - {"id", "messages", "content", *NOTES})
    if unknown:
        raise _bad_line(
            path,
            number,
            sample_id,
            f"unknown field {', '.join(unknown)}",
            f"id, messages or content, {', '.join(NOTES)}",
        )
    if ("messages" in record) == ("content" in record):
        both = "both messages and content" if "messages" in record else "neither messages nor content"
        raise _bad_line(path, number, sample_id, both, "one of them")
    notes = {name: record.get(name) or "" for name in NOTES}
    for name, value in notes.items():
        if not isinstance(value, str):
            raise _bad_line(path, number, sample_id, f"{name} {value!r}", f"a text as {name}")
    try:
        if "messages" in record:
            return Sample(sample_id, messages=_messages(record["messages"]), **notes)
        return Sample(sample_id, parts=_parts(record["content"]), **notes)
    except ValueError as error:
        found, needed = error.args
        raise _bad_line(path, number, sample_id, found, needed) from error


def _messages(value: object) -> tuple[Message, ...]:
    """Raises ValueError(found, needed)."""
    if not isinstance(value, list) or not value:
        raise ValueError("messages that are no list, or an empty one", "a list of messages")
    messages = []
    for turn in value:
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            raise ValueError(f"a message {_short(turn)}", "messages with the two fields role and content")
        if turn["role"] not in ROLES:
            raise ValueError(f"role {turn['role']!r}", f"one of {', '.join(ROLES)}")
        parts = _parts(turn["content"])
        if turn["role"] != "user" and any(isinstance(part, ImagePart) for part in parts):
            # the chat template drops it without a word
            raise ValueError(f"an image in a message of role {turn['role']}", "images in user messages only")
        messages.append(Message(turn["role"], parts))
    if any(message.role == "system" for message in messages[1:]):
        raise ValueError("a system message that is not the first", "at most one system message, in front")
    if not any(message.role == "assistant" for message in messages):
        raise ValueError("no assistant message", "at least one: nothing else is trained on")
    return tuple(messages)


def _parts(value: object) -> tuple[Part, ...]:
    """Raises ValueError(found, needed)."""
    if isinstance(value, str):
        value = [{"type": "text", "text": value}]
    if not isinstance(value, list) or not value:
        raise ValueError("content that is no list, or an empty one", "a text or a list of parts")
    return tuple(_part(part) for part in value)


def _part(value: object) -> Part:
    """Raises ValueError(found, needed)."""
    needed = '{"type": "text", "text": ...} or {"type": "image", "image": ...}'
    if not isinstance(value, dict) or value.get("type") not in ("text", "image"):
        raise ValueError(f"a part {_short(value)}", needed)
    kind = value["type"]
    body = value.get(kind)
    if set(value) != {"type", kind} or not isinstance(body, str) or not body:
        raise ValueError(f"a part {_short(value)}", needed)
    if kind == "text":
        return TextPart(body)
    if Path(body).is_absolute() or ".." in Path(body).parts:
        raise ValueError(f"image path {body!r}", "a path inside the data folder, relative to it")
    return ImagePart(body)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _bad_line(path: Path, number: int, sample_id: str | None, found: str, needed: str) -> DataError:
    who = f" (sample {sample_id})" if sample_id else ""
    return DataError(
        f"{path} line {number}{who}: {found}", needed, "mend that line; megatron_medx/data/samples.py has the schema"
    )
