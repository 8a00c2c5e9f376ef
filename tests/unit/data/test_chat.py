"""Tokens and learned tokens of samples, against the whole rendering and the stock processor."""

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from megatron_medx.data.chat import SampleEncoder, measure_text, render
from megatron_medx.data.decoding import PillowDecoder
from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.view import ImageView
from megatron_medx.data.patches import Patcher
from megatron_medx.data.samples import NOTES, ImagePart, parse_sample
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
def encode(demo):
    """A function: records -> (encoder, samples); the encoder reads images as the demo's source has them."""

    def make(*records, seq_len_tokens=512):
        patcher = Patcher.from_directory(demo / "processor", 4096, 25600)
        tokenizer = AutoTokenizer.from_pretrained(demo / "processor")
        encoder = SampleEncoder(tokenizer, patcher, seq_len_tokens)
        return encoder, [located(parse_sample(record), demo / "source") for record in records]

    return make


def located(sample, folder):
    """The sample as the build writes it: its images have sizes."""

    def sized(part):
        if not isinstance(part, ImagePart):
            return part
        return replace(part, size=read_image(ImageFile.of(folder / part.image), part.view).size)

    messages = tuple(replace(turn, parts=tuple(map(sized, turn.parts))) for turn in sample.messages)
    return replace(sample, messages=messages, parts=tuple(map(sized, sample.parts)))


@pytest.fixture
def encoded_by(demo):
    """A function: encoder, sample -> the sample encoded."""

    def encode(encoder, sample):
        files = {part.image: ImageFile.of(demo / "source" / part.image) for part in sample.images}
        return encoder.encode(sample, files)

    return encode


def their_pixels(demo, images):
    """Patches by the stock processor in its PIL form."""
    settings = {"size": {"shortest_edge": 4096, "longest_edge": 25600}}
    processor = Qwen2VLImageProcessorPil.from_pretrained(demo / "processor", **settings)
    return torch.from_numpy(processor(images=images, return_tensors="np")["pixel_values"])


def learned_text(encoder, encoded):
    return encoder.tokenizer.decode(encoded.tokens_S[encoded.loss_weights_S > 0])


def test_tokens_are_those_of_the_stock_processor(demo, encode, chat, encoded_by):
    encoder, [sample] = encode(chat("a", "What is it?", "X-ray and ultrasound", (CHEST, HEART)))
    encoded = encoded_by(encoder, sample)
    processor = AutoProcessor.from_pretrained(demo / "processor", backend="torchvision")
    messages = chat("a", "What is it?", "X-ray and ultrasound", (CHEST, HEART))["messages"]
    text = processor.apply_chat_template(messages, tokenize=False)
    images = [read_image(ImageFile.of(demo / "source" / part.image)) for part in sample.images]
    theirs = processor(text=[text], images=images, return_tensors="pt")
    assert torch.equal(encoded.tokens_S, theirs["input_ids"][0])
    assert torch.equal(encoded.grids_I3, theirs["image_grid_thw"])
    assert torch.equal(torch.cat(PillowDecoder(encoder.patcher).patches(encoded.images)), their_pixels(demo, images))


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
def test_learned_tokens_are_those_of_trls_training_template(demo, encode, record, encoded_by):
    encoder, [sample] = encode(record)
    encoded = encoded_by(encoder, sample)
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


def test_answers_and_their_end_are_learned(encode, encoded_by):
    encoder, [sample] = encode(turns("one", "two", "three", "four"))
    assert learned_text(encoder, encoded_by(encoder, sample)) == "two<|im_end|>four<|im_end|>"


def test_tokens_weigh_what_their_message_weighs(encode, encoded_by):
    record = turns("one", "two", "three", "four", "five", "six", "seven", "eight")
    for index, weight in ((1, 0.25), (3, 0), (5, 3)):
        record["messages"][index]["weight"] = weight
    encoder, [sample] = encode(record)
    encoded = encoded_by(encoder, sample)
    learned = {}
    for weight in encoded.loss_weights_S.unique().tolist():
        learned[weight] = encoder.tokenizer.decode(encoded.tokens_S[encoded.loss_weights_S == weight])
    assert encoded.loss_weights_S.dtype == torch.float32
    assert learned.pop(0.0).count("four<|im_end|>") == 1
    assert learned == {0.25: "two<|im_end|>", 3.0: "six<|im_end|>", 1.0: "eight<|im_end|>"}


def test_a_sample_of_weight_0_is_read_and_not_learned(encode, encoded_by):
    record = turns("one", "two")
    record["messages"][1]["weight"] = 0
    encoder, [sample] = encode(record)
    assert encoded_by(encoder, sample).loss_weights_S.sum() == 0


def test_what_is_known_of_a_sample_is_no_text(encode, chat, encoded_by):
    """Its patient least of all."""
    notes = {name: f"{name} here" for name in (*NOTES, "metadata")} | {"metadata": {"name": "metadata here"}}
    encoder, [plain, noted] = encode(
        chat("a", "What?", "X-ray", (CHEST,)), chat("b", "What?", "X-ray", (CHEST,)) | notes
    )
    assert noted.patient == "patient here"
    assert torch.equal(encoded_by(encoder, plain).tokens_S, encoded_by(encoder, noted).tokens_S)


def test_the_view_of_an_image_is_passed_on(encode, chat, encoded_by):
    record = chat("a", "What?", "X-ray", (CHEST, CHEST))
    record["messages"][0]["content"][0]["frame"] = 0
    record["messages"][0]["content"][1]["window"] = "lung"
    encoder, _ = encode()
    sample = parse_sample(record)
    turn = sample.messages[0]
    turn = replace(turn, parts=tuple(replace(part, size=(70, 50)) for part in turn.parts[:2]) + turn.parts[2:])
    encoded = encoded_by(encoder, replace(sample, messages=(turn, *sample.messages[1:])))
    assert [image.view for image in encoded.images] == [ImageView(), ImageView(("lung",), 0)]
    assert all(image.file.name.endswith(CHEST) for image in encoded.images)


def test_an_assistant_may_begin(encode, encoded_by):
    encoder, [sample] = encode({"id": "a", "messages": [{"role": "assistant", "content": "hello"}]})
    assert learned_text(encoder, encoded_by(encoder, sample)) == "hello<|im_end|>"


def test_a_token_across_header_and_answer_is_prompt(encode, encoded_by):
    encoder, [sample] = encode(turns("one", "\n\nlate"))
    assert learned_text(encoder, encoded_by(encoder, sample)).lstrip("\n") == "late<|im_end|>"


def test_a_document_is_learned_but_for_its_images(encode, encoded_by):
    parts = [{"type": "text", "text": "Figure."}, {"type": "image", "image": CHEST}, {"type": "text", "text": "Chest."}]
    encoder, [sample] = encode({"id": "d", "content": parts})
    encoded = encoded_by(encoder, sample)
    assert learned_text(encoder, encoded) == "Figure.Chest.<|endoftext|>"
    text = encoder.tokenizer.decode(encoded.tokens_S)
    assert text == "Figure.<|vision_start|>" + "<|image_pad|>" * 20 + "<|vision_end|>Chest.<|endoftext|>"
    assert measure_text(sample, encoder.tokenizer).tokens == len(encoded.tokens_S) - 20 + 1


def test_text_alone_has_no_patches(encode, encoded_by):
    encoder, [sample] = encode(turns("one", "two"))
    encoded = encoded_by(encoder, sample)
    assert encoded.images == [] and encoded.grids_I3.shape == (0, 3) and encoded.grids_I3.dtype == torch.int64


def test_placeholders_in_the_text_are_refused(encode, chat, encoded_by):
    encoder, samples = encode(
        chat("extra", "<|image_pad|>?", "X-ray", (CHEST,)), chat("film", "<|video_pad|>?", "X-ray", (CHEST,))
    )
    with pytest.raises(DataError, match=r"sample extra: 2 <\|image_pad\|> and 0 <\|video_pad\|>.*, 1 images"):
        encoded_by(encoder, samples[0])
    with pytest.raises(DataError, match=r"sample film: 1 <\|image_pad\|> and 1 <\|video_pad\|>"):
        measure_text(samples[1], encoder.tokenizer)


def test_a_sample_longer_than_a_row_loses_resolution_and_no_text(encode, chat, encoded_by):
    record = chat("long", "What?", "X-ray", (CHEST,))
    encoder, [sample] = encode(record)
    text_tokens = measure_text(sample, encoder.tokenizer).tokens
    whole = encoded_by(encoder, sample)
    assert len(whole.tokens_S) == text_tokens - 1 + 20
    encoder.seq_len_tokens = text_tokens + 9
    short = encoded_by(encoder, sample)
    num_image_tokens = int(short.grids_I3.prod()) // 4
    assert 1 < num_image_tokens <= 10 and len(short.tokens_S) == text_tokens - 1 + num_image_tokens
    is_text = [encoded.tokens_S != 4082 for encoded in (whole, short)]
    for name in ("tokens_S", "loss_weights_S"):
        assert torch.equal(getattr(whole, name)[is_text[0]], getattr(short, name)[is_text[1]])
    encoder.seq_len_tokens, encoder.sample_align_tokens = text_tokens + 1, 2 * text_tokens
    with pytest.raises(DataError, match=rf"sample long has {text_tokens} tokens, .*\n.*at most 0"):
        encoded_by(encoder, sample)


@pytest.fixture
def stack():
    """A function that makes a record: text, so many slices at 0 mm, 2.5 mm, ... and text."""

    def make(count, asked, answered="Normal."):
        slices = [{"type": "image", "image": HEART, "position": f"{2.5 * n:.1f} mm"} for n in range(count)]
        text = [{"type": "text", "text": asked}]
        turns = [{"role": "user", "content": [*text, *slices, *text]}, {"role": "assistant", "content": answered}]
        return {"id": "stack", "messages": turns}

    return make


def test_positions_stand_in_front_of_their_images(encode, stack, encoded_by):
    encoder, [sample] = encode(stack(2, "A study: "))
    text = encoder.tokenizer.decode(encoded_by(encoder, sample).tokens_S).replace("<|image_pad|>", "")
    image = "<|vision_start|><|vision_end|>"
    assert f"A study: 0.0 mm{image}2.5 mm{image}A study: " in text
    document = {"id": "d", "content": sample_parts(stack(2, "A study: "))}
    encoder, [sample] = encode(document)
    encoded = encoded_by(encoder, sample)
    assert learned_text(encoder, encoded) == "A study: A study: <|endoftext|>", "positions are read, not learned"


def sample_parts(record):
    """The parts of a record's first message."""
    return record["messages"][0]["content"]


@pytest.mark.parametrize("asked", ["A study: ", "Slices at 0", "x"])
def test_a_stack_that_is_too_long_is_the_stack_with_fewer_slices(encode, stack, encoded_by, asked):
    """Token by token: dropping slices gives what a sample without them would have given."""
    encoder, [sample] = encode(stack(9, asked))
    size = measure_text(sample, encoder.tokenizer)
    assert size.image_spans[0] == 0 and min(size.image_spans[1:]) > 3
    whole = encoded_by(encoder, sample)
    encoder.seq_len_tokens = len(whole.tokens_S) // 2
    short = encoded_by(encoder, sample)
    assert 2 < len(short.images) < 9 and len(short.tokens_S) <= encoder.seq_len_tokens
    text = encoder.tokenizer.decode(short.tokens_S)
    positions = re.findall(r"(\d+\.\d mm)<\|vision_start", text.replace(asked, ""))
    assert (positions[0], positions[-1]) == ("0.0 mm", "20.0 mm"), "the first and the last slice stay"
    parts = sample.messages[0].parts
    kept = [part for part in parts if not isinstance(part, ImagePart) or part.position in positions]
    encoder.seq_len_tokens = 512
    fewer = replace(sample, messages=(replace(sample.messages[0], parts=tuple(kept)), *sample.messages[1:]))
    same = encoded_by(encoder, fewer)
    assert torch.equal(same.tokens_S, short.tokens_S) and torch.equal(same.loss_weights_S, short.loss_weights_S)
    assert torch.equal(same.grids_I3, short.grids_I3)


def test_text_between_two_slices_ends_a_stack(encode, stack):
    record = stack(4, "A study: ")
    record["messages"][0]["content"].insert(3, {"type": "text", "text": " and then "})
    encoder, [sample] = encode(record)
    spans = measure_text(sample, encoder.tokenizer).image_spans
    assert [span > 0 for span in spans] == [False, True, False, True]


def test_a_template_that_rewrites_is_refused(encode):
    encoder, [sample] = encode(turns("one", "two"))
    template = encoder.tokenizer.chat_template
    encoder.tokenizer.chat_template = "{{ messages | length }}" + template
    with pytest.raises(DataError, match="its first 2 messages are rendered otherwise"):
        render(sample, encoder.tokenizer)
