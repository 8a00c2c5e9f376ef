"""samples.jsonl: what is read and what is refused, by the reader and by the JSON Schema alike."""

import json
import re

import pytest
from jsonschema import Draft202012Validator

from megatron_medx.data.images.view import ImageView
from megatron_medx.data.images.windows import WINDOWS_HU
from megatron_medx.data.samples import SCHEMA_FILE, ImagePart, TextPart, parse_line, parse_sample, to_record

USER = {"role": "user", "content": [{"type": "image", "image": "images/a.png"}, {"type": "text", "text": "What?"}]}
ASSISTANT = {"role": "assistant", "content": "X-ray"}
SYSTEM = {"role": "system", "content": "Be brief."}


def line(**fields):
    """A good line with some fields of its own."""
    return {"id": "x", "content": "a text"} | fields


def chat(*messages):
    return {"id": "x", "messages": list(messages)}


def option(**fields):
    """An option of a question with some fields of its own."""
    return chat(USER, ASSISTANT) | {"choice": {"question": "q", "num_choices": 2, "correct": True} | fields}


def picture(**fields):
    return {"id": "x", "content": [{"type": "image", "image": "images/a.png"} | fields]}


def stack(kind, path, **fields):
    return {"id": "x", "content": [{"type": kind, kind: path} | fields]}


GOOD = [
    line(),
    line(modality="CR", source="web", license="CC0-1.0", language="de", patient="p-17"),
    line(modality=None, patient=None, metadata=None),
    line(metadata={"scanner": {"tesla": 3, "of": [1.5, None, True]}}),
    chat(USER, ASSISTANT),
    chat(USER, ASSISTANT) | {"choice": {"question": "q", "num_choices": 2, "correct": False}},
    chat(USER, ASSISTANT) | {"choice": None},
    line(choice=None),
    chat(ASSISTANT),
    chat(SYSTEM, USER, ASSISTANT, USER),
    chat(USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT | {"weight": 0.25}, USER, ASSISTANT | {"weight": 1000}),
    picture(),
    picture(image="images/..a/b..c/..."),
    picture(frame=0),
    picture(window="lung", frame=3),
    picture(window=["lung", "lung", "bone"]),
    picture(window=["bone"]),
    *(picture(window=name) for name in WINDOWS_HU),
    picture(position="12.5 mm", size=[512, 384]),
    picture(position="", size=None),
    stack("volume", "ct/series-2"),
    stack("volume", "ct.nii.gz", window=["lung", "bone", "brain"]),
    stack("slide", "a.svs"),
]

REFUSED = [
    ({"messages": [USER, ASSISTANT]}, "^id null"),
    (line(id=""), r"^id \"\""),
    (line(id=7), r"^id 7"),
    ({"id": "x"}, r"^neither messages nor content"),
    (line(messages=[USER, ASSISTANT]), "both messages and content"),
    (line(mesages=1), "unknown field mesages\n.*id, messages or content, modality, .*, patient, choice, metadata"),
    (line(modality=3), "modality 3"),
    (line(language=0), "language 0"),
    (line(patient=["p"]), r'patient \["p"\]\n.*a text as patient'),
    (line(choice={"question": "q", "num_choices": 2, "correct": True}), "choice of a document"),
    (chat(USER, ASSISTANT) | {"choice": "q"}, 'choice "q"\n.*an object as choice'),
    (chat(USER, ASSISTANT) | {"choice": {"question": "q"}}, "choice {.*\n.*question, num_choices and correct"),
    (option(id=1), r"choice {.*\n.*question, num_choices and correct"),
    (option(question=""), 'choice.question ""'),
    (option(question=7), "choice.question 7"),
    (option(num_choices=1), "choice.num_choices 1\n.*a whole number from 2"),
    (option(num_choices=2.5), "choice.num_choices 2.5"),
    (option(num_choices=True), "choice.num_choices true"),
    (option(correct=1), "choice.correct 1\n.*true or false"),
    (option(correct=None), "choice.correct null"),
    (line(metadata="free"), 'metadata "free"\n.*an object as metadata'),
    (line(metadata=[]), r"metadata \[\]"),
    (chat(), r"messages \[\]"),
    (line(content={"type": "text", "text": "a"}), "content {"),
    (line(content=""), 'content ""'),
    (line(content=[]), r"content \[\]"),
    (chat("hello"), r'messages\[0\] "hello"'),
    (chat({"role": "user"}), r"messages\[0\] {"),
    (chat(USER, ASSISTANT | {"name": "a"}), r"messages\[1\] .*\n.*role and content, and weight"),
    (chat({"role": "doctor", "content": "a"}), r'messages\[0\].role "doctor"\n.*one of system, user, assistant'),
    (chat({"role": ["user"], "content": "a"}), r'messages\[0\].role \["user"\]'),
    (chat(USER), "without an assistant's"),
    (chat(USER, ASSISTANT | {"content": USER["content"]}), r"messages\[1\].content with an image, role assistant"),
    (chat(SYSTEM | {"content": USER["content"]}, ASSISTANT), r"messages\[0\].content with an image, role system"),
    (chat(USER, SYSTEM, ASSISTANT), r"messages\[1\].role system\n.*in front"),
    (chat(USER | {"weight": 1}, ASSISTANT), r"messages\[0\].weight with role user\n.*assistant messages only"),
    (chat(USER, ASSISTANT | {"weight": -0.1}), r"messages\[1\].weight -0.1\n.*a number from 0 to 1000"),
    (chat(USER, ASSISTANT | {"weight": 1000.5}), r"messages\[1\].weight 1000.5"),
    (chat(USER, ASSISTANT | {"weight": True}), r"messages\[1\].weight true"),
    (chat(USER, ASSISTANT | {"weight": "2"}), r'messages\[1\].weight "2"'),
    (chat(USER, ASSISTANT | {"weight": None}), r"messages\[1\].weight null"),
    (chat(USER | {"content": [USER["content"][0], "a"]}, ASSISTANT), r'messages\[0\].content\[1\] "a"'),
    (line(content=[{"type": "video", "video": "a"}]), r"content\[0\] .*video"),
    (line(content=[{"type": "text", "text": ""}]), r"content\[0\] "),
    (line(content=[{"type": "text", "text": "a", "window": "lung"}]), r"content\[0\] .*window"),
    (line(content=[{"type": "text", "text": "y" * 200, "z": 1}]), r"content\[0\] .*\.\.\."),
    (picture(image=""), r"content\[0\] "),
    (picture(image="/etc/a.png"), r'content\[0\].image "/etc/a.png"'),
    (picture(image="../a.png"), r"content\[0\].image"),
    (picture(image="images/.."), r"content\[0\].image"),
    (picture(image="a\n/../b"), r"content\[0\].image"),
    (picture(window="lungs"), r"content\[0\]: window .*lungs"),
    (picture(window=["lung", "bone"]), r"content\[0\]: 2 windows"),
    (picture(window=[]), r"content\[0\]: window"),
    (picture(window=["lung"] * 4), r"content\[0\]: 4 windows"),
    (picture(window=["lung", "bone", "bones"]), r"content\[0\]: window"),
    (picture(window=["lung", "bone", 3]), r"content\[0\]: window"),
    (picture(window=3), r"content\[0\]: window"),
    (picture(frame=-1), r"content\[0\]: frame -1"),
    (picture(frame="1"), r"content\[0\]: frame"),
    (picture(frame=True), r"content\[0\]: frame"),
    (picture(frame=0.5), r"content\[0\]: frame 0.5"),
    (picture(position=3), r"content\[0\].position 3"),
    (picture(size=[512]), r"content\[0\].size \[512\]"),
    (picture(size=[512, 0]), r"content\[0\].size"),
    (picture(size=[512, True]), r"content\[0\].size"),
    (picture(size="a"), r"content\[0\].size"),
    (stack("volume", "../ct"), r"content\[0\].volume"),
    (stack("volume", "ct", frame=1), r"content\[0\] .*frame"),
    (stack("volume", "ct", window="lungs"), r"content\[0\]: window"),
    (stack("slide", "a.svs", window="lung"), r"content\[0\] .*window"),
    (stack("slide", ""), r"content\[0\] "),
]

REFUSED_BY_THE_READER_ALONE = [
    ("{", r"^not JSON"),
    ('{"id": "x", "content": "a", "metadata": {"value": NaN}}', r"^not JSON \(found NaN\)"),
    ("[1]", r"^a JSON list"),
    (b'{"id": "\xff", "content": "a"}', r"^not JSON \('utf-8' codec"),
]
"""What no validator of one parsed line can see, or a JSON list, of which it says the same."""


def read(line):
    """The sample of a line of samples.jsonl, given as its bytes, its text or its object."""
    text = line if isinstance(line, bytes | str) else json.dumps(line)
    return parse_sample(parse_line(text if isinstance(text, bytes) else text.encode()))


def refusal(line):
    """What is found and what is needed, as two lines."""
    with pytest.raises(ValueError) as refused:
        read(line)
    return "\n".join(refused.value.args)


@pytest.fixture(scope="module")
def schema():
    schema = json.loads(SCHEMA_FILE.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_reads_conversations_and_documents():
    document = {"id": "d", "content": [{"type": "text", "text": "Figure"}, {"type": "image", "image": "images/b.png"}]}
    conversation, paper = read({"id": "c", "messages": [USER, ASSISTANT], "modality": "CR"}), read(document)
    assert conversation.messages[0].parts == (ImagePart("images/a.png"), TextPart("What?"))
    assert conversation.messages[1].parts == (TextPart("X-ray"),)
    assert (conversation.modality, conversation.images) == ("CR", [ImagePart("images/a.png")])
    assert (paper.messages, paper.images) == ((), [ImagePart("images/b.png")])


def test_reads_every_field():
    notes = {"modality": "CT", "source": "ward", "license": "CC0-1.0", "language": "en", "patient": "p-17"}
    record = chat(USER, ASSISTANT, USER, ASSISTANT | {"weight": 0.5}) | notes | {"metadata": {"any": 1}}
    sample = read(record)
    assert {name: getattr(sample, name) for name in notes} == notes
    assert [message.weight for message in sample.messages] == [1, 1, 1, 0.5]
    sample = read(picture(window=["lung", "mediastinum", "bone"], frame=2))
    assert sample.images == [ImagePart("images/a.png", ImageView(("lung", "mediastinum", "bone"), 2))]
    assert sample.patient == ""


@pytest.mark.parametrize("record", GOOD, ids=json.dumps)
def test_reader_and_schema_take_a_good_line(schema, record):
    schema.validate(record)
    assert read(record).sample_id == "x"


@pytest.mark.parametrize("record", GOOD, ids=json.dumps)
def test_a_sample_and_its_record_say_the_same(schema, record):
    sample = parse_sample(record)
    written = to_record(sample, record.get("metadata"))
    schema.validate(written)
    assert parse_sample(json.loads(json.dumps(written))) == sample
    assert written.get("metadata") == record.get("metadata")
    assert "size" not in str(written) or "size" in str(record)


@pytest.mark.parametrize(("record", "message"), REFUSED)
def test_reader_and_schema_refuse_a_bad_line(schema, record, message):
    assert not schema.is_valid(record)
    assert re.search(message, refusal(record))


@pytest.mark.parametrize(("line", "message"), REFUSED_BY_THE_READER_ALONE)
def test_reader_refuses_a_bad_line(line, message):
    assert re.search(message, refusal(line))
