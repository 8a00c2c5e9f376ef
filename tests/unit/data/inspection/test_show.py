"""The page of rows: everything of a sample is on it, marked as it is learned, and nothing is fetched."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from megatron_medx.data.inspection.show import parse_packs, render_page, write_page
from megatron_medx.data.rows import build_row_dataset
from megatron_medx.errors import DataError

VOID = {"meta", "img", "rect", "br"}
HARD_TEXT = "Is <script>alert(\"x\")</script> & 'y' > 3?"


class Page(HTMLParser):
    """Elements of a page; fails where an element is closed that is not the last one opened."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()["tag"] == tag, tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [element for element in self.elements if element["tag"] == tag]


@pytest.fixture
def dataset(run_config, write_folder, chat):
    """One row of three samples, aligned to 4 and padded to 256 tokens."""
    weighted = chat("odd-weight", "What?", "Noise")
    weighted["messages"][1]["weight"] = 0.25
    records = [
        chat("two-images", "Which?", "Both of them", ("images/cr-chest.dcm", "images/ct-head.dcm")),
        chat("hard-text", HARD_TEXT, "No."),
        weighted,
    ]
    config = run_config(write_folder(records), packing=True, sample_align_tokens=4)
    return build_row_dataset(config, align_tokens=8, pad_to_tokens=256)


@pytest.fixture
def page(dataset):
    return Page(render_page(dataset, range(1), 256, "a folder"))


def test_every_sample_is_there_and_nothing_is_fetched(dataset):
    text = render_page(dataset, range(1), 256, "a folder")
    page = Page(text)
    assert sorted(element["text"] for element in page.all("h3")) == ["hard-text", "odd-weight", "two-images"]
    assert "http" not in text and "url(" not in text and not page.all("script") and not page.all("link")
    for element in page.elements:
        assert element.get("src", "data:").startswith("data:") and "href" not in element


def test_learned_text_is_marked_exactly_where_weights_are(dataset, page):
    batch, tokenizer = dataset[0], dataset.encoder.tokenizer
    learned, image_id = [], tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for start, num_tokens in zip(batch.cu_seqlens.tolist(), batch.sample_tokens, strict=False):
        for place in range(start, start + num_tokens):
            is_learned = place > start and batch.loss_weights_1S[0, place - 1] != 0
            if batch.tokens_1S[0, place] != image_id:
                learned.append((int(batch.tokens_1S[0, place]), bool(is_learned)))
    shown = [span for span in page.all("span") if "class" in span and span["class"] not in ("quiet", "weight")]
    shown = [span for span in shown if "image" not in span["class"]][2:]  # two of the legend
    for wanted in (True, False):
        expected = tokenizer.decode([token for token, is_learned in learned if is_learned is wanted])
        assert "".join(span["text"] for span in shown if ("learned" in span["class"]) is wanted) == expected
    assert [span["text"] for span in page.all("span") if span.get("class") == "weight"] == ["x0.5", "x0.25"]


def test_text_is_escaped(page):
    assert any(HARD_TEXT in element["text"] for element in page.all("pre"))


def test_special_tokens_are_dimmed_and_images_have_their_place(page):
    dimmed = {span["text"] for span in page.all("span") if "special" in span.get("class", "").split()}
    assert {"<|im_start|>", "<|im_end|>", "<|vision_start|>"} <= dimmed and "user\n" not in dimmed
    places = [span["text"] for span in page.all("span") if span.get("class") == "image"][1:]  # one of the legend
    captions = [caption["text"] for caption in page.all("figcaption")]
    assert len(places) == len(captions) == 2
    for place, caption in zip(places, captions, strict=True):
        assert place == f"[{caption.split(', ')[1].removesuffix(' tokens')} image tokens]"


def test_images_are_those_that_the_model_sees(dataset, page):
    batch, patcher = dataset[0], dataset.encoder.patcher
    images = page.all("img")
    for image, pixels, grid in zip(
        images, batch.pixels_PC.split(batch.grids_I3.prod(dim=1).tolist()), batch.grids_I3, strict=True
    ):
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as shown:
            assert np.array_equal(np.asarray(shown), np.asarray(patcher.unpatchify(pixels, grid)))


def test_numbers_of_a_row(dataset, page):
    batch = dataset[0]
    facts = dict(zip([e["text"] for e in page.all("dt")], [e["text"] for e in page.all("dd")], strict=True))
    used = sum(batch.sample_tokens)
    assert facts["tokens"].startswith(f"{used} of 256") and facts["padding"].startswith(str(256 - used))
    assert facts["images"].startswith("2") and facts["patches"].startswith(str(len(batch.pixels_PC)))
    assert facts["estimated cost"].startswith(f"{dataset.cost(0) / 1e12:.3g} TFLOP")
    assert page.all("code")[0]["text"] == " ".join(map(str, batch.cu_seqlens.tolist()))


def test_bars_are_to_scale_and_without_gaps(dataset, page):
    batch = dataset[0]
    assert page.all("svg")[0]["viewbox"] == "0 0 256 42"
    segments = [rect for rect in page.all("rect") if not rect["class"].startswith("bar-")]
    end = 0
    for rect in segments:
        assert int(rect["x"]) == end
        end += int(rect["width"])
    assert end == 256
    samples = [rect for rect in segments if rect["class"] != "padding"]
    assert [rect["class"] for rect in samples] == ["sample0", "sample1", "sample0"]
    assert [int(rect["x"]) for rect in samples] == batch.cu_seqlens.tolist()[:3]
    assert [int(rect["width"]) for rect in samples] == batch.sample_tokens


def test_positions_of_text_and_images(dataset, page):
    batch = dataset[0]
    cells = [cell["text"] for cell in page.all("td")]
    rows = [" ".join(cells[first : first + 5]).split() for first in range(0, len(cells), 5)]
    assert len(rows) == 5 + 1 + 1  # text and images of the first sample in turn, the text of two others
    for kind, start, _, end, *ranges in rows:
        positions = batch.positions_3S[:, int(start) : int(end) + 1]
        shown = [int(word) for word in ranges if word != "to"]
        assert shown == [int(value) for axis in positions for value in (axis.min(), axis.max())]
        is_image = batch.tokens_1S[0, int(start) : int(end) + 1] == dataset.encoder.tokenizer.convert_tokens_to_ids(
            "<|image_pad|>"
        )
        assert bool(is_image.all()) if kind == "image" else not bool(is_image.any())


def test_page_is_written_for_several_rows(run_config, write_folder, chat, tmp_path):
    config = run_config(write_folder([chat(f"n{number}", "What?", "Noise") for number in range(3)]))
    config.parallel.world_size = config.parallel.tensor = 2
    write_page(config, parse_packs("1:3"), tmp_path / "new" / "page.html")
    page = Page((tmp_path / "new" / "page.html").read_text(encoding="utf-8"))
    assert [element["text"] for element in page.all("h2")] == ["Row 1", "Row 2"]
    assert len(page.all("h3")) == 2  # not packed: one sample a row


def test_rows_are_named_by_a_number_or_a_range():
    assert parse_packs("7") == range(7, 8) and parse_packs("2:5") == range(2, 5)


@pytest.mark.parametrize("text", ["-1", "x", "", "3:3", "4:2", "1:", ":2", "1:2:3", "²"])
def test_other_row_numbers_are_refused(text):
    with pytest.raises(DataError, match=f"--pack {text}") as error:
        parse_packs(text)
    assert error.value.needed == "a row number from 0 on, or A:B with A < B"
