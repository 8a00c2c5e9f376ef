"""The demo folder: its samples, its tokenizer and processor, its page."""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, Qwen3VLProcessor

from megatron_medx.config.processor import REQUIRED_FILES, copy_known_files, copy_processor, vision_token_ids
from megatron_medx.config.validation import validated_rows, validation_config
from megatron_medx.data.demo import corpus, pictures, tokenizer
from megatron_medx.data.demo.build import HELD_OUT, build_demo
from megatron_medx.data.images.dicom import is_dicom
from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.index import Manifest
from megatron_medx.data.inspection.preview import _cards, draw_preview
from megatron_medx.data.plan.prepare import open_prepared, prepare_data
from megatron_medx.data.plan.row_plan import plan_rows
from megatron_medx.data.rows import build_row_dataset
from megatron_medx.data.samples import SAMPLES_FILE, parse_line, parse_sample
from megatron_medx.errors import DataError
from megatron_medx.recipes import get_recipe


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def source_samples(demo):
    """The samples of the demo's source, in file order."""
    return [parse_sample(parse_line(line)) for line in (demo / "source" / SAMPLES_FILE).read_bytes().splitlines()]


def test_building_twice_writes_the_same_files(demo, tmp_path):
    build_demo(tmp_path)
    assert contents(tmp_path) == contents(demo)


def test_samples_cover_every_modality(demo):
    samples = source_samples(demo)
    counts = {name: sum(sample.modality == name for sample in samples) for name in [*pictures.MODALITY_NAMES, "text"]}
    assert counts["text"] == 150
    assert all(counts[name] >= 15 for name in pictures.MODALITY_NAMES)
    assert sum(len(sample.images) == 2 for sample in samples) == 10
    questions = [json.loads(line) for line in (demo / "source" / "questions.jsonl").read_text().splitlines()]
    assert len(questions) == len(pictures.PICTURES) == 48


def test_source_is_built_whole(demo):
    samples = source_samples(demo)
    manifest = Manifest.read(demo)
    assert (manifest.num_samples, manifest.num_rejected) == (len(samples), 0)
    assert manifest.provenance["source"] == "source"
    assert contents(demo / "processor") == contents(demo / "source" / "processor")
    rows = pq.read_table(demo / "index.parquet").to_pylist()
    assert [row["id"] for row in rows] == [sample.sample_id for sample in samples]
    assert [len(row["image_widths"]) for row in rows] == [len(sample.images) for sample in samples]


def test_what_is_held_out_is_not_trained_on(demo):
    trained = source_samples(demo)
    asked = {(sample.messages, sample.parts, sample.sample_id) for sample in trained}
    pictures_trained_on = {picture.path for picture in pictures.PICTURES}
    for name, num_samples, num_questions in (("validation", 44, 0), ("choices", 80, 20)):
        folder = demo / HELD_OUT / name
        samples = source_samples(folder)
        assert Manifest.read(folder).num_samples == len(samples) == num_samples
        assert not asked & {(sample.messages, sample.parts, sample.sample_id) for sample in samples}
        assert not pictures_trained_on & {image.image for sample in samples for image in sample.images}
        answers = {one.sample_id.split("-")[1] for one in trained} & {one.sample_id.split("-")[1] for one in samples}
        assert not {answer for answer in answers if answer.isdigit() and len(answer) > 2}, "terms of HPO"
        choices = [sample.choice for sample in samples if sample.choice]
        assert (
            sum(choice.correct for choice in choices) == len({choice.question for choice in choices}) == num_questions
        )
        assert {sample.modality for sample in samples} == {"MR", "US", "text"}


def test_the_recipe_looks_at_every_sample_that_is_held_out(demo, tmp_path):
    config = get_recipe("demo")
    config.data.validation_sets = {name: str(demo / HELD_OUT / name) for name in ("validation", "choices")}
    config.data.path = str(demo)
    for name, looked_at in (("validation", 4), ("choices", 8)):
        validated = validation_config(config, name)
        prepare_data(validated, tmp_path / name)
        num_rows = plan_rows(validated, *open_prepared(validated, tmp_path / name)).rows_per_epoch
        assert validated_rows(config, num_rows) == num_rows == looked_at


def test_pictures_show_something_and_dicom_stays_dicom(demo):
    for picture in pictures.PICTURES:
        file = ImageFile.of(demo / "source" / picture.path)
        image = read_image(file)
        assert max(image.size) <= 1024
        assert np.asarray(image).std() > 8, picture.name
        assert is_dicom(file.content) == picture.path.endswith(".dcm")


def test_hpo_is_cited_with_its_version(demo):
    version, terms = corpus.read_hpo()
    assert f"release {version}" in (demo / "source" / "ATTRIBUTION.md").read_text()
    by_id = {term.term_id: term for term in terms}
    assert by_id["HP:0000003"].name == "Multicystic kidney dysplasia"
    assert by_id["HP:0000003"].definition.endswith("the affected kidney is nonfunctional.")


def test_special_tokens_have_fixed_ids(demo):
    assert vision_token_ids(demo / "processor") == {
        "image_token_id": 4082,
        "video_token_id": 4083,
        "vision_start_token_id": 4079,
        "vision_end_token_id": 4080,
    }
    loaded = AutoTokenizer.from_pretrained(demo / "processor")
    added = tokenizer.SPECIAL_TOKENS + tokenizer.ORDINARY_ADDED_TOKENS
    assert loaded.convert_tokens_to_ids(list(added)) == list(range(4070, 4096)) and len(loaded) == 4096
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert set(loaded.all_special_tokens) == set(tokenizer.SPECIAL_TOKENS)


def test_any_text_survives_the_tokenizer(demo):
    loaded = AutoTokenizer.from_pretrained(demo / "processor")
    text = "Köhler's naïve  x\n\n日本 🩻 <think>12345</think> <|im_end|>"
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert len(loaded("Which imaging modality is this?")["input_ids"]) <= 7


def test_too_little_text_is_refused():
    with pytest.raises(DataError, match=r"the text yields a vocabulary of \d+ tokens"):
        tokenizer.train(["chest"] * 10)


def test_processor_directory_is_of_the_hubs_kind(demo):
    folder = demo / "processor"
    assert {path.name for path in folder.iterdir()} == {*REQUIRED_FILES, "generation_config.json"}
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, Qwen3VLProcessor)
    assert processor.image_processor.size == {"shortest_edge": 4096, "longest_edge": 25600}
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert merges[0] == "#version: 0.2" and len(merges) - 1 == 4070 - 256 and len(vocab) == 4070
    # upstream's template as trl 1.16 stores it; a stored public copy of the hub's file has the same text
    assert hashlib.sha256((folder / "chat_template.jinja").read_bytes()).hexdigest() == (
        "3636d0f0bd6bef02654cdffdc447b79cb2cef8ab02cc75267345946291a489e4"
    )


def test_copy_processor_states_the_limits_of_training(demo, tmp_path):
    source, target = demo / "processor", tmp_path / "copy"
    assert copy_known_files(source, target) == [*REQUIRED_FILES, "generation_config.json"]
    assert contents(source) == contents(target)
    copy_processor(source, target, min_pixels=4096, max_pixels=9216)
    assert json.loads((target / "preprocessor_config.json").read_text())["size"]["longest_edge"] == 9216
    changed = {name for name, data in contents(source).items() if contents(target)[name] != data}
    assert changed == {"preprocessor_config.json"}


def test_half_a_processor_is_refused(demo, tmp_path):
    copy_known_files(demo / "processor", tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(DataError, match=r"lacks merges\.txt"):
        copy_processor(tmp_path, tmp_path / "x", min_pixels=4096, max_pixels=9216)
    settings = json.loads((demo / "processor" / "tokenizer.json").read_text())
    settings["added_tokens"] = [entry for entry in settings["added_tokens"] if entry["content"] != "<|image_pad|>"]
    copy_known_files(demo / "processor", tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=r"has no <\|image_pad\|>"):
        vision_token_ids(tmp_path)


def test_missing_packages_are_named(monkeypatch, tmp_path):
    for module, missing in (
        (corpus, corpus.read_icd),
        (corpus, corpus.read_hpo),
        (tokenizer, tokenizer._chat_template),
    ):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        with pytest.raises(DataError, match=r"the package \w+ .*is not installed"):
            missing()
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="the package stardist is not installed"):
        pictures.package_folder("stardist")


def test_a_missing_picture_is_named(tmp_path):
    gone = pictures.Picture("gone", "CR", "", "pydicom", "gone.dcm")
    with pytest.raises(DataError, match=r"no file .*gone\.dcm"):
        pictures.write_picture(gone, tmp_path)


def test_preview_shows_weights_other_than_1(demo, run_config, write_folder, chat):
    weighted, plain = chat("w", "What?", "Noise"), chat("p", "What?", "Noise")
    weighted["messages"][1]["weight"] = 0.1
    shown = {}
    for card in _cards(build_row_dataset(run_config(write_folder([weighted, plain])), 1), 2):
        shown[card.sample_id] = [text for text, learned in card.words if learned]
    assert shown == {"w": ["[x0.1] Noise<|im_end|>"], "p": ["Noise<|im_end|>"]}


@pytest.mark.parametrize("packing", [False, True])
def test_preview_is_drawn(demo, run_config, tmp_path, packing):
    dataset = build_row_dataset(run_config(demo, packing=packing), align_tokens=8)
    draw_preview(dataset, tmp_path / "new" / "preview.png", num_samples=6)
    with Image.open(tmp_path / "new" / "preview.png") as page:
        assert page.width > 1000 and np.asarray(page.convert("L")).std() > 10


def test_trl_is_used_for_the_template_alone():
    """trl is installed without its dependencies; importing it at run time would need them."""
    package = Path(find_spec("megatron_medx").origin).parent
    importing = [
        path.name
        for path in package.rglob("*.py")
        if "import trl" in path.read_text() or "from trl" in path.read_text()
    ]
    assert importing == []
