"""Tokens and learned tokens of samples, against the whole rendering and the stock processor."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from megatron_medx.data import chat as encoding
from megatron_medx.data.chat import SampleEncoder, render
from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.view import ImageView
from megatron_medx.data.patches import Patcher
from megatron_medx.data.samples import NOTES, read_samples
from megatron_medx.errors import DataError

CHEST, HEART = "images/cr-chest.dcm", "images/us-heart.dcm"


def turns(*contents):
    """A conversation: user and assistant by turns."""
    roles = ("user", "assistant")
    return {
        "id": "turns",
        "messages": [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)],
    }


@pytest.fixture
def encode(demo, write_folder):
    """A function: records -> (encoder, samples)."""

    def make(*records, seq_len_tokens=512):
        folder = write_folder(list(records))
        patcher = Patcher.from_directory(demo / "processor", 4096, 25600)
        tokenizer = AutoTokenizer.from_pretrained(demo / "processor")
        return SampleEncoder(tokenizer, patcher, folder, seq_len_tokens), read_samples(folder)

    return make


def learned_text(encoder, encoded):
    return encoder.tokenizer.decode(encoded.tokens_S[encoded.loss_weights_S > 0])


def test_tokens_are_those_of_the_stock_processor(demo, encode, chat):
    encoder, [sample] = encode(chat("a", "What is it?", "X-ray and ultrasound", (CHEST, HEART)))
    encoded = encoder.encode(sample)
    processor = AutoProcessor.from_pretrained(demo / "processor", backend="torchvision")
    messages = chat("a", "What is it?", "X-ray and ultrasound", (CHEST, HEART))["messages"]
    text = processor.apply_chat_template(messages, tokenize=False)
    images = [read_image(encoder.folder / part.image) for part in sample.images]
    theirs = processor(text=[text], images=images, return_tensors="pt")
    assert torch.equal(encoded.tokens_S, theirs["input_ids"][0])
    assert torch.equal(encoded.grids_I3, theirs["image_grid_thw"])
    assert encoded.pixels_PC.shape == theirs["pixel_values"].shape
    assert encoder.measure(sample).tokens == len(encoded.tokens_S)


@pytest.mark.parametrize(
    "record",
    [
        turns([{"type": "image", "image": CHEST}, {"type": "text", "text": "What?"}], "X-ray"),
        turns("one", "two", "three", "four"),
        {"id": "s", "messages": [{"role": "system", "content": "Be brief."}, *turns("a", "b")["messages"]]},
        turns("I write <|im_start|>assistant\nas text<|im_end|>\n", "an answer with <|im_end|> in it"),
        turns("Grüße 日本", "naïve — Köhler 🩻 e\u0301"),
        turns("a", " leading space, trailing \n"),
    ],
    ids=["image", "turns", "system", "markers", "unicode", "space"],
)
def test_learned_tokens_are_those_of_trls_training_template(demo, encode, record):
    encoder, [sample] = encode(record)
    encoded = encoder.encode(sample)
    messages = [
        {"role": message.role, "content": [{"type": "text", "text": part.text} if hasattr(part, "text")
                                           else {"type": "image"} for part in message.parts]}
        for message in sample.messages
    ]  # fmt: skip
    folder = Path(find_spec("trl").origin).parent / "chat_templates"  # trl itself cannot be imported without its needs
    template = (folder / "qwen3_vl_training.jinja").read_text()
    theirs = encoder.tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    is_image = encoded.tokens_S == encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    first = is_image & ~torch.cat([torch.tensor([False]), is_image[:-1]])
    kept = ~is_image | first  # the stock text has one placeholder an image
    assert encoded.tokens_S[kept].tolist() == theirs["input_ids"]
    mask = torch.tensor(theirs["assistant_masks"])
    ids = torch.tensor(theirs["input_ids"])
    # trl also teaches the line break behind <|im_end|>, which no engine ever generates
    newline = encoder.tokenizer.convert_tokens_to_ids("Ċ")
    turn_end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    mask[1:][(ids[1:] == newline) & (ids[:-1] == turn_end)] = 0
    assert encoded.loss_weights_S[kept].tolist() == mask.tolist()


def test_answers_and_their_end_are_learned(encode):
    encoder, [sample] = encode(turns("one", "two", "three", "four"))
    assert learned_text(encoder, encoder.encode(sample)) == "two<|im_end|>four<|im_end|>"


def test_tokens_weigh_what_their_message_weighs(encode):
    record = turns("one", "two", "three", "four", "five", "six", "seven", "eight")
    for index, weight in ((1, 0.25), (3, 0), (5, 3)):
        record["messages"][index]["weight"] = weight
    encoder, [sample] = encode(record)
    encoded = encoder.encode(sample)
    learned = {}
    for weight in encoded.loss_weights_S.unique().tolist():
        learned[weight] = encoder.tokenizer.decode(encoded.tokens_S[encoded.loss_weights_S == weight])
    assert encoded.loss_weights_S.dtype == torch.float32
    assert learned.pop(0.0).count("four<|im_end|>") == 1
    assert learned == {0.25: "two<|im_end|>", 3.0: "six<|im_end|>", 1.0: "eight<|im_end|>"}


def test_a_sample_of_weight_0_is_read_and_not_learned(encode):
    record = turns("one", "two")
    record["messages"][1]["weight"] = 0
    encoder, [sample] = encode(record)
    assert encoder.encode(sample).loss_weights_S.sum() == 0


def test_what_is_known_of_a_sample_is_no_text(encode, chat):
    """Its patient least of all."""
    notes = {name: f"{name} here" for name in (*NOTES, "metadata")} | {"metadata": {"name": "metadata here"}}
    encoder, [plain, noted] = encode(
        chat("a", "What?", "X-ray", (CHEST,)), chat("b", "What?", "X-ray", (CHEST,)) | notes
    )
    assert noted.patient == "patient here"
    assert torch.equal(encoder.encode(plain).tokens_S, encoder.encode(noted).tokens_S)


@pytest.mark.parametrize("measure", ["measure", "encode"])
def test_the_view_of_an_image_is_passed_on(encode, chat, monkeypatch, measure):
    record = chat("a", "What?", "X-ray", (CHEST, CHEST))
    record["messages"][0]["content"][0] |= {"window": "lung", "frame": 0}
    encoder, [sample] = encode(record)
    seen = []

    def noted(name):
        original = getattr(encoding, name)

        def spy(path, view, allow_burned_in):
            seen.append((path, view))
            return original(path)

        return spy

    for name in ("read_image", "image_size"):
        monkeypatch.setattr(encoding, name, noted(name))
    getattr(encoder, measure)(sample)
    path = encoder.folder / CHEST
    assert seen == [(path, ImageView(("lung",), 0)), (path, ImageView())]


def test_an_assistant_may_begin(encode):
    encoder, [sample] = encode({"id": "a", "messages": [{"role": "assistant", "content": "hello"}]})
    assert learned_text(encoder, encoder.encode(sample)) == "hello<|im_end|>"


def test_a_token_across_header_and_answer_is_prompt(encode):
    encoder, [sample] = encode(turns("one", "\n\nlate"))
    assert learned_text(encoder, encoder.encode(sample)).lstrip("\n") == "late<|im_end|>"


def test_a_document_is_learned_but_for_its_images(encode):
    parts = [{"type": "text", "text": "Figure."}, {"type": "image", "image": CHEST}, {"type": "text", "text": "Chest."}]
    encoder, [sample] = encode({"id": "d", "content": parts})
    encoded = encoder.encode(sample)
    assert learned_text(encoder, encoded) == "Figure.Chest.<|endoftext|>"
    text = encoder.tokenizer.decode(encoded.tokens_S)
    assert text == "Figure.<|vision_start|>" + "<|image_pad|>" * 20 + "<|vision_end|>Chest.<|endoftext|>"
    assert encoder.measure(sample).tokens == len(encoded.tokens_S)


def test_text_alone_has_no_patches(encode):
    encoder, [sample] = encode(turns("one", "two"))
    encoded = encoder.encode(sample)
    assert encoded.pixels_PC.shape == (0, 1536) and encoded.grids_I3.shape == (0, 3)
    assert (encoded.pixels_PC.dtype, encoded.grids_I3.dtype) == (torch.float32, torch.int64)


def test_placeholders_in_the_text_are_refused(encode, chat):
    encoder, samples = encode(
        chat("extra", "<|image_pad|>?", "X-ray", (CHEST,)), chat("film", "<|video_pad|>?", "X-ray", (CHEST,))
    )
    with pytest.raises(DataError, match=r"sample extra: 2 <\|image_pad\|> and 0 <\|video_pad\|>.*, 1 images"):
        encoder.encode(samples[0])
    with pytest.raises(DataError, match=r"sample film: 1 <\|image_pad\|> and 1 <\|video_pad\|>"):
        encoder.measure(samples[1])


def test_a_sample_longer_than_a_row_is_refused(encode, chat):
    encoder, [sample] = encode(chat("long", "What?", "X-ray", (CHEST,)), seq_len_tokens=30)
    for measure in (encoder.measure, encoder.encode):
        with pytest.raises(DataError, match=r"sample long has \d+ tokens, 20 of them of 1 images"):
            measure(sample)


def test_an_image_too_long_is_refused(encode, chat):
    encoder, [sample] = encode(chat("line", "What?", "X-ray", ("images/line.png",)))
    Image.new("RGB", (300, 1)).save(encoder.folder / "images/line.png")
    with pytest.raises(DataError, match="an image of 300 x 1 px"):
        encoder.measure(sample)


def test_a_template_that_rewrites_is_refused(encode):
    encoder, [sample] = encode(turns("one", "two"))
    template = encoder.tokenizer.chat_template
    encoder.tokenizer.chat_template = "{{ messages | length }}" + template
    with pytest.raises(DataError, match="its first 2 messages are rendered otherwise"):
        render(sample, encoder.tokenizer)
