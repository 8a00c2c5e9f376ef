"""samples.jsonl: what is read and what is refused."""

import json

import pytest

from megatron_medx.data.samples import ImagePart, TextPart, read_samples
from megatron_medx.errors import DataError

USER = {"role": "user", "content": [{"type": "image", "image": "images/a.png"}, {"type": "text", "text": "What?"}]}
ASSISTANT = {"role": "assistant", "content": "X-ray"}


def write(tmp_path, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (tmp_path / "samples.jsonl").write_text(text)
    return tmp_path


def test_reads_conversations_and_documents(tmp_path):
    document = {"id": "d", "content": [{"type": "text", "text": "Figure"}, {"type": "image", "image": "images/b.png"}]}
    folder = write(tmp_path, {"id": "c", "messages": [USER, ASSISTANT], "modality": "CR"}, "", document)
    conversation, paper = read_samples(folder)
    assert conversation.messages[0].parts == (ImagePart("images/a.png"), TextPart("What?"))
    assert conversation.messages[1].parts == (TextPart("X-ray"),)
    assert (conversation.modality, conversation.image_paths) == ("CR", ["images/a.png"])
    assert (paper.messages, paper.image_paths) == ((), ["images/b.png"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not JSON"),
        ("[1]", r"line 2: a JSON list"),
        ({"messages": [USER, ASSISTANT]}, r"line 2: id None"),
        ({"id": "x"}, r"line 2 \(sample x\): neither messages nor content"),
        ({"id": "x", "messages": [USER], "content": "a"}, "both messages and content"),
        ({"id": "x", "messages": [USER, ASSISTANT], "mesages": 1}, "unknown field mesages"),
        ({"id": "x", "messages": [USER, ASSISTANT], "modality": 3}, "modality 3"),
        ({"id": "x", "messages": []}, "messages that are no list, or an empty one"),
        ({"id": "x", "messages": ["hello"]}, 'a message "hello"'),
        ({"id": "x", "messages": [{"role": "doctor", "content": "a"}]}, "role 'doctor'"),
        ({"id": "x", "messages": [USER]}, "no assistant message"),
        (
            {"id": "x", "messages": [USER, ASSISTANT | {"content": USER["content"]}]},
            r"an image in a message of role assistant",
        ),
        ({"id": "x", "messages": [USER, {"role": "system", "content": "a"}, ASSISTANT]}, "not the first"),
        ({"id": "x", "content": []}, "content that is no list, or an empty one"),
        ({"id": "x", "content": [{"type": "video", "video": "a"}]}, "a part .*video"),
        ({"id": "x", "content": [{"type": "text", "text": ""}]}, "a part"),
        ({"id": "x", "content": [{"type": "text", "text": "y" * 200, "z": 1}]}, r"a part .*\.\.\."),
        ({"id": "x", "content": [{"type": "image", "image": "/etc/a.png"}]}, "image path '/etc/a.png'"),
        ({"id": "x", "content": [{"type": "image", "image": "../a.png"}]}, "image path"),
        ({"id": "first", "content": "again"}, "the id stands on line 1 already"),
    ],
)
def test_refuses_a_bad_line(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        read_samples(write(tmp_path, {"id": "first", "content": "good"}, line))


def test_refuses_a_folder_without_samples(tmp_path):
    with pytest.raises(DataError, match=r"no file .*samples\.jsonl"):
        read_samples(tmp_path)
    with pytest.raises(DataError, match="holds no sample"):
        read_samples(write(tmp_path, ""))
