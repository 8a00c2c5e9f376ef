"""Samples: the lines of `samples.jsonl`, checked and typed.

A source folder holds `samples.jsonl` and the files that it names; `medx data build` makes a data folder of it, whose
records have the same form. A line is a conversation or an interleaved document:

    {"id": "cr-1", "messages": [{"role": "user", "content": [{"type": "image", "image": "images/chest.dcm"},
                                                             {"type": "text", "text": "Which modality?"}]},
                                {"role": "assistant", "content": [{"type": "text", "text": "X-ray"}]}]}
    {"id": "doc-7", "content": [{"type": "text", "text": "Figure 1."}, {"type": "image", "image": "images/f1.png"}]}

`content` may be a text instead of a list of parts. Optional fields:

    of the line      modality, source, license, language, patient     texts; see NOTES
                     choice                                           of a conversation that is one option of a
                                                                      multiple-choice question; see `Choice`
                     metadata                                         a JSON object; checked to be one, never read
    of an assistant  weight                                           from 0 to 1000, default 1: each of the turn's
                                                                      tokens counts for so many in the loss
    of an image      window, frame                                    see `images/view.py`
                     position                                         a short text in front of the image, such as
                                                                      "12.5 mm"; images that have one may be thinned
                                                                      out evenly where a sample is too long
                     size                                             width and height in px as shown; the build sets it

Two more parts stand for several images, and the build turns them into these: {"type": "volume", "volume": "ct.nii.gz"}
(a NIfTI file, or a folder with one DICOM series), which may have a `window`, and {"type": "slide", "slide": "a.svs"}.

The same as a JSON Schema stands in `samples.schema.json` and is printed by `medx data schema`; a test holds the two
together. That ids occur once, only the build can see. Nothing here opens an image or knows a tokenizer.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.data.images.view import AS_STORED, VIEW_KEYS, ImageView

SAMPLES_FILE = "samples.jsonl"

SCHEMA_FILE = Path(__file__).with_name("samples.schema.json")
"""JSON Schema of one line, draft 2020-12."""

ROLES = ("system", "user", "assistant")

NOTES = ("modality", "source", "license", "language", "patient")
"""Optional fields, text, that say where a sample comes from; `patient` is a key of the patient or study.

No training step reads them and none becomes text of the sample.
"""

PART_KEYS = {"text": (), "image": (*VIEW_KEYS, "position", "size"), "volume": ("window",), "slide": ()}
"""Kinds of parts, and the optional keys of each beside `type` and its own."""

MAX_WEIGHT = 1000
"""Of a message: far above any use, and float32 holds sums of it."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image file, and what is to be seen of it."""

    image: str
    """Path relative to the source; in a data folder what follows the sample's key, such as `0.dcm`."""
    view: ImageView = AS_STORED
    position: str = ""
    """Text in front of the image, such as "12.5 mm"; empty for an image that is no slice and always stays."""
    size: tuple[int, int] | None = None
    """Width and height in px as shown, in what the build wrote; None in a source."""


@dataclass(frozen=True, slots=True)
class StackPart:
    """A volume or a whole slide of a source: the build makes images of it, each with its position."""

    kind: str
    """`volume` or `slide`."""
    path: str
    """A file or a folder, relative to the source."""
    view: ImageView = AS_STORED
    """Windows for each image; no frame."""


Part = TextPart | ImagePart | StackPart


@dataclass(frozen=True, slots=True)
class Choice:
    """Of which multiple-choice question a conversation is one option: the prompt asks, the answer is the option."""

    question: str
    """Id that the samples of all options share."""
    num_choices: int
    """Options of the question, each a sample of its own."""
    correct: bool
    """Whether this is the right one."""


@dataclass(frozen=True, slots=True)
class SampleNotes:
    """What validation tells samples apart by; empty and None where a sample does not say."""

    modality: str = ""
    source: str = ""
    choice: Choice | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    parts: tuple[Part, ...]
    weight: float = 1.0
    """How many tokens each learned token of an assistant turn counts for in the loss; 0 leaves the turn unlearned."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation (`messages`) or one interleaved document (`parts`); the other of the two is empty."""

    sample_id: str
    messages: tuple[Message, ...] = ()
    parts: tuple[Part, ...] = ()
    modality: str = ""
    source: str = ""
    license: str = ""
    language: str = ""
    patient: str = ""
    choice: Choice | None = None

    @property
    def notes(self) -> SampleNotes:
        """What goes with the sample into its row."""
        return SampleNotes(self.modality, self.source, self.choice)

    @property
    def images(self) -> list[ImagePart]:
        """Images in reading order."""
        parts = [part for message in self.messages for part in message.parts] + list(self.parts)
        return [part for part in parts if isinstance(part, ImagePart)]


# The functions below raise ValueError(found, needed); found begins with the field that it is about.


def parse_line(line: bytes) -> dict:
    """The JSON object of a line.

    Raises:
        ValueError(found, needed): it is none.
    """
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})", "one JSON object a line, UTF-8") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}", "one JSON object a line")
    return record


def _no_number(word: str) -> None:
    """Python would read NaN and Infinity, which are not JSON."""
    raise ValueError(f"found {word}")


def parse_sample(record: dict) -> Sample:
    """One sample out of a line's JSON object.

    Raises:
        ValueError(found, needed): it breaks the schema.
    """
    sample_id = record.get("id")
    if not isinstance(sample_id, str) or not sample_id:
        raise ValueError(f"id {_short(sample_id)}", "an id that is a text")
    optional = (*NOTES, "choice", "metadata")
    unknown = sorted(set(record) - {"id", "messages", "content", *optional})
    if unknown:
        raise ValueError(f"unknown field {', '.join(unknown)}", f"id, messages or content, {', '.join(optional)}")
    if ("messages" in record) == ("content" in record):
        both = "both messages and content" if "messages" in record else "neither messages nor content"
        raise ValueError(both, "one of them")
    for name in optional:
        kind, a_kind = (str, "a text") if name in NOTES else (dict, "an object")
        if not isinstance(record.get(name), kind | None):
            raise ValueError(f"{name} {_short(record[name])}", f"{a_kind} as {name}")
    notes = {name: record.get(name) or "" for name in NOTES}
    if "messages" in record:
        return Sample(sample_id, messages=_messages(record["messages"]), choice=_choice(record.get("choice")), **notes)
    if record.get("choice") is not None:
        raise ValueError("choice of a document", "choice of a conversation: its answer is the option")
    return Sample(sample_id, parts=_parts(record["content"], "content"), **notes)


def to_record(sample: Sample, metadata: dict | None = None) -> dict:
    """The line's JSON object of a sample; `parse_sample` makes the sample of it again.

    Content is a list of parts, and what has its default is left out.
    """
    record: dict = {"id": sample.sample_id}
    if sample.messages:
        record["messages"] = [
            {"role": message.role, "content": [_part_record(part) for part in message.parts]}
            | ({"weight": message.weight} if message.weight != 1 else {})
            for message in sample.messages
        ]
    else:
        record["content"] = [_part_record(part) for part in sample.parts]
    record |= {name: getattr(sample, name) for name in NOTES if getattr(sample, name)}
    record |= {"choice": dataclasses.asdict(sample.choice)} if sample.choice else {}
    return record | ({"metadata": metadata} if metadata else {})


def _part_record(part: Part) -> dict:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, StackPart):
        record: dict = {"type": part.kind, part.kind: part.path}
    else:
        record = {"type": "image", "image": part.image}
        record |= {"position": part.position} if part.position else {}
        record |= {"size": list(part.size)} if part.size else {}
        record |= {"frame": part.view.frame} if part.view.frame else {}
    return record | ({"window": list(part.view.windows)} if part.view.windows else {})


def _choice(value: dict | None) -> Choice | None:
    if value is None:
        return None
    if set(value) != {"question", "num_choices", "correct"}:
        raise ValueError(f"choice {_short(value)}", "an object with question, num_choices and correct")
    question, num_choices, correct = value["question"], value["num_choices"], value["correct"]
    if not isinstance(question, str) or not question:
        raise ValueError(f"choice.question {_short(question)}", "a text, the same for all options of a question")
    if type(num_choices) is not int or num_choices < 2:
        raise ValueError(f"choice.num_choices {_short(num_choices)}", "a whole number from 2")
    if not isinstance(correct, bool):
        raise ValueError(f"choice.correct {_short(correct)}", "true or false")
    return Choice(question, num_choices, correct)


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"messages {_short(value)}", "a list of at least one message")
    messages = tuple(_message(turn, f"messages[{index}]") for index, turn in enumerate(value))
    for index, message in enumerate(messages[1:], start=1):
        if message.role == "system":
            raise ValueError(f"messages[{index}].role system", "at most one system message, in front")
    if not any(message.role == "assistant" for message in messages):
        raise ValueError("messages without an assistant's", "at least one: nothing else is trained on")
    return messages


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, dict) or set(turn) - {"weight"} != {"role", "content"}:
        raise ValueError(f"{where} {_short(turn)}", "an object with role and content, and weight if it is to have one")
    role = turn["role"]
    if role not in ROLES:
        raise ValueError(f"{where}.role {_short(role)}", f"one of {', '.join(ROLES)}")
    parts = _parts(turn["content"], f"{where}.content")
    if role != "user" and not all(isinstance(part, TextPart) for part in parts):
        # the chat template drops it without a word
        raise ValueError(f"{where}.content with an image, role {role}", "images in user messages only")
    if "weight" in turn and role != "assistant":
        raise ValueError(f"{where}.weight with role {role}", "weights of assistant messages only: no other is learned")
    weight = turn.get("weight", 1)
    # JSON's true is 1 to Python
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"{where}.weight {_short(weight)}", f"a number from 0 to {MAX_WEIGHT}")
    return Message(role, parts, float(weight))


def _parts(value: object, where: str) -> tuple[Part, ...]:
    if isinstance(value, str) and value:
        return (TextPart(value),)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} {_short(value)}", "a text, or a list of at least one part")
    return tuple(_part(part, f"{where}[{index}]") for index, part in enumerate(value))


def _part(value: object, where: str) -> Part:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in PART_KEYS:
        raise ValueError(f"{where} {_short(value)}", f"an object whose type is one of {', '.join(PART_KEYS)}")
    body, optional = value.get(kind), PART_KEYS[kind]
    if set(value) - set(optional) != {"type", kind} or not isinstance(body, str) or not body:
        needed = f'{{"type": "{kind}", "{kind}": ...}}' + f" with, if wanted, {', '.join(optional)}" * bool(optional)
        raise ValueError(f"{where} {_short(value)}", needed)
    if kind == "text":
        return TextPart(body)
    if body.startswith("/") or ".." in body.split("/"):
        raise ValueError(f"{where}.{kind} {_short(body)}", "a path inside the data folder, relative to it")
    try:
        view = ImageView.of(value)
    except ValueError as error:
        found, needed = error.args
        raise ValueError(f"{where}: {found}", needed) from error
    if kind != "image":
        return StackPart(kind, body, view)
    return ImagePart(body, view, _position(value, where), _size(value, where))


def _position(value: dict, where: str) -> str:
    position = value.get("position", "")
    if not isinstance(position, str):
        raise ValueError(f"{where}.position {_short(position)}", 'a short text, such as "12.5 mm"')
    return position


def _size(value: dict, where: str) -> tuple[int, int] | None:
    size = value.get("size")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
        raise ValueError(f"{where}.size {_short(size)}", "width and height in px, two whole numbers from 1")
    return tuple(size)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
