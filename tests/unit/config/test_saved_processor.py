"""The processor files of a directory that transformers 5 saved: which are written anew, which copied."""

import json
import shutil

import pytest

from megatron_medx.config.processor import check_processor, copy_known_files, copy_processor
from megatron_medx.config.saved_processor import hub_files
from megatron_medx.errors import DataError

SETTINGS = {"size": {"shortest_edge": 4096, "longest_edge": 25600}, "patch_size": 16, "image_mean": [0.1, 0.2, 0.3]}
ADDED = {"content": "<|im_end|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "é": 3}, "merges": [["a", "b"]]}


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def saved(tmp_path):
    """As transformers 5.23 and TRL 1.16 leave it."""
    folder = tmp_path / "saved"
    folder.mkdir()
    nested = {
        "processor_class": "Qwen3VLProcessor",
        "image_processor": {**SETTINGS, "image_processor_type": "Qwen2VLImageProcessor"},
        "video_processor": {**SETTINGS, "video_processor_type": "Qwen3VLVideoProcessor", "fps": 2},
    }
    write(folder, "processor_config.json", nested)
    tokenizer = {"padding": {"strategy": "BatchLongest"}, "truncation": {"max_length": 5}, "model": BPE}
    write(folder, "tokenizer.json", {**tokenizer, "added_tokens": [{"id": 4, **ADDED}]})
    settings = {"extra_special_tokens": ["<|im_end|>"], "eos_token": "<|im_end|>", "backend": "tokenizers"}
    write(folder, "tokenizer_config.json", {**settings, "is_local": True, "response_template": {"kept": True}})
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    (folder / "training_args.bin").write_bytes(b"not of a processor")
    return folder


@pytest.fixture
def written(saved, tmp_path):
    """Its copy."""
    assert sorted(copy_known_files(saved, tmp_path / "out")) == sorted(
        path.name for path in (tmp_path / "out").iterdir()
    )
    return tmp_path / "out"


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_copy_is_a_whole_processor_in_the_hubs_style(written):
    check_processor(written)
    assert not (written / "processor_config.json").exists()
    assert not (written / "training_args.bin").exists()
    assert (written / "chat_template.jinja").read_bytes() == b"{{ messages }}\r\n"


def test_image_and_video_settings(written):
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor"}
    assert read(written / "preprocessor_config.json") == SETTINGS | image
    video = {"video_processor_type": "Qwen3VLVideoProcessor", "processor_class": "Qwen3VLProcessor", "fps": 2}
    assert read(written / "video_preprocessor_config.json") == SETTINGS | video


def test_vocabulary_and_merges(written):
    assert read(written / "vocab.json") == BPE["vocab"]
    assert "é" in (written / "vocab.json").read_text(encoding="utf-8")
    assert (written / "merges.txt").read_text() == "#version: 0.2\na b\n"


def test_the_tokenizer_forgets_its_last_batch_and_keeps_its_tokens(saved, written):
    before, after = (read(folder / "tokenizer.json") for folder in (saved, written))
    assert after == {**before, "padding": None, "truncation": None}
    assert read(written / "tokenizer_config.json") == {
        "added_tokens_decoder": {"4": ADDED},
        "additional_special_tokens": ["<|im_end|>"],
        "eos_token": "<|im_end|>",
        "response_template": {"kept": True},
    }


def test_what_was_saved_over_a_hub_directory_counts(saved, tmp_path):
    """transformers 5 reads the nested file first; the older ones beside it would contradict it."""
    write(saved, "preprocessor_config.json", {**SETTINGS, "image_mean": [0.5, 0.5, 0.5]})
    copy_known_files(saved, tmp_path / "out")
    assert read(tmp_path / "out" / "preprocessor_config.json")["image_mean"] == [0.1, 0.2, 0.3]


def test_a_runs_limits_of_area_are_the_only_ones(saved, written, tmp_path):
    copy_processor(written, tmp_path / "run", min_pixels=1024, max_pixels=2048)
    limits = {"shortest_edge": 1024, "longest_edge": 2048}
    assert read(tmp_path / "run" / "preprocessor_config.json")["size"] == limits
    assert not (tmp_path / "run" / "processor_config.json").exists()


def test_a_hub_directory_is_copied_byte_for_byte(written, tmp_path):
    write(written, "processor_config.json", {"processor_class": "Qwen3VLProcessor"})  # flat: it holds no settings
    assert hub_files(written) == {}
    shutil.copytree(written, tmp_path / "hub")
    copy_known_files(tmp_path / "hub", tmp_path / "copy")
    for path in written.iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()


def test_a_file_that_is_no_json_is_named(saved, tmp_path):
    (saved / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json is no JSON"):
        copy_known_files(saved, tmp_path / "out")


def test_a_saved_directory_as_the_processor_of_data_is_refused_with_the_way_out(saved):
    with pytest.raises(DataError, match=r"lacks vocab\.json.*preprocessor_config\.json") as error:
        check_processor(saved)
    assert "medx convert to-megatron" in str(error.value)
