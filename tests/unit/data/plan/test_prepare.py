"""What a launch checks before the ranks start, and what it leaves for them."""

import json
from pathlib import Path

import pytest
from synthetic_index import write_folder

from megatron_medx.config.processor import REQUIRED_FILES
from megatron_medx.config.run import RunConfig
from megatron_medx.data.plan.prepare import check_enough, compare_plans, open_prepared, prepare_data
from megatron_medx.errors import ConfigError, DataError
from megatron_medx.recipes import get_recipe

SAMPLES = [(30 + number, [(64, 64, 0)] * (number % 3)) for number in range(50)]


@pytest.fixture
def processor(tmp_path) -> Path:
    folder = tmp_path / "processor"
    folder.mkdir()
    for name in REQUIRED_FILES:
        (folder / name).write_text("")
    return folder


@pytest.fixture
def config(tmp_path, processor) -> RunConfig:
    """A run over 50 samples."""
    config = get_recipe("demo")
    config.data.path = str(write_folder(tmp_path / "data", processor, SAMPLES))
    config.data.processor = str(processor)
    config.data.seq_len_tokens = 512
    return config


@pytest.fixture
def mixture(config, tmp_path, processor):
    """A function that makes a mixture of the 50 samples and 20 others, and sets it."""

    def make(text: str) -> None:
        if not (tmp_path / "more").exists():
            write_folder(tmp_path / "more", processor, SAMPLES[:20])
        (tmp_path / "mixture.yaml").write_text(text)
        config.data.path = str(tmp_path / "mixture.yaml")

    return make


def test_tables_plan_and_rejects(config, tmp_path):
    prepared = prepare_data(config, tmp_path / "prepared")
    tables, mixture = open_prepared(config, tmp_path / "prepared")
    assert mixture == prepared.mixture and [len(table) for table in tables] == [50]
    assert prepared.summaries[0].num_tokens == tables[0]["tokens"].sum() > 0
    plan = json.loads((tmp_path / "prepared" / "plan.json").read_text())
    assert plan["fingerprint"] == prepared.fingerprint and plan["pieces"] == prepared.pieces
    assert plan["counts"][config.data.path]["num_samples"] == 50
    assert (tmp_path / "prepared" / "rejects.jsonl").read_text() == ""
    assert not list((tmp_path / "prepared").glob("*.tmp"))


def test_a_mixture_has_a_table_for_each_source(config, mixture, tmp_path):
    mixture("sources: [{path: data, weight: 0.6}, {path: more, weight: 0.4, max_epochs: 3}]")
    config.data.processor = ""
    (tmp_path / "data" / "processor").symlink_to(tmp_path / "processor")
    prepare_data(config, tmp_path / "prepared")
    tables, sources = open_prepared(config, tmp_path / "prepared")
    assert [len(table) for table in tables] == [50, 20] and sources[1].max_epochs == 3


def test_a_resume_names_what_differs(config, mixture, tmp_path):
    mixture("sources: [{path: data, weight: 0.6}, {path: more, weight: [[0, 0.4]]}]")
    former = prepare_data(config, tmp_path / "prepared")
    assert prepare_data(config, tmp_path / "again").fingerprint == former.fingerprint
    config.data.max_bad_fraction = 0.5
    assert prepare_data(config, tmp_path / "again").fingerprint == former.fingerprint
    stored = json.loads((tmp_path / "prepared" / "plan.json").read_text())["pieces"]
    assert compare_plans(stored, former.pieces) == []
    config.data.seq_len_tokens, config.run.seed = 300, 5
    mixture("sources: [{path: data, weight: 0.5}, {path: more, weight: 0.5, max_epochs: 2}]")
    now = prepare_data(config, tmp_path / "again")
    assert now.fingerprint != former.fingerprint
    assert compare_plans(stored, now.pieces) == [
        "run.seed was 1234 and is 5",
        "data.seq_len_tokens was 512 and is 300",
        "source 0: weight was [[0, 0.6]] and is [[0, 0.5]]",
        "source 1: weight was [[0, 0.4]] and is [[0, 0.5]]",
        "source 1: max_epochs was None and is 2.0",
    ]
    mixture("sources: [{path: data}]")
    differing = compare_plans(stored, prepare_data(config, tmp_path / "again").pieces)
    assert "sources was 2 and is 1" in differing and any("is not there" in line for line in differing)


def test_the_fingerprint_holds_where_the_folder_lies(config, tmp_path):
    former = prepare_data(config, tmp_path / "prepared")
    Path(config.data.path).rename(tmp_path / "moved")
    config.data.path = str(tmp_path / "moved")
    assert prepare_data(config, tmp_path / "again").fingerprint == former.fingerprint


def test_a_changed_index(config, tmp_path):
    index = Path(config.data.path) / "index.parquet"
    with open(index, "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"index.parquet has SHA-256 [0-9a-f]{64}\nneeded: [0-9a-f]{64}"):
        prepare_data(config, tmp_path / "prepared")
    index.unlink()
    with pytest.raises(DataError, match=r"no file .*index.parquet"):
        prepare_data(config, tmp_path / "prepared")


def test_a_changed_shard(config, tmp_path):
    shard = Path(config.data.path) / "shards" / "00000.tar"
    shard.write_bytes(b"01234567")
    with pytest.raises(DataError, match=r"00000.tar has 8 bytes\nneeded: 10 bytes"):
        prepare_data(config, tmp_path / "prepared")
    shard.unlink()
    with pytest.raises(DataError, match=r"no file .*00000.tar\nneeded: a shard of 10 bytes"):
        prepare_data(config, tmp_path / "prepared")


def test_another_tokenizer(config, tmp_path, processor):
    (processor / "chat_template.jinja").write_text("another")
    with pytest.raises(DataError, match=r"fingerprint [0-9a-f]{64}\nneeded: [0-9a-f]{64}, with which the lengths"):
        prepare_data(config, tmp_path / "prepared")


def test_no_processor(config, tmp_path, processor):
    (processor / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"processor lacks tokenizer.json"):
        prepare_data(config, tmp_path / "prepared")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_row_patches", 3, "data.max_row_patches allows 3 patches\nneeded: at least 4"),
        ("max_pixels", 1023, "data.max_pixels allows 1023 px\nneeded: at least 1024"),
        ("seq_len_tokens", 3, "data.seq_len_tokens allows 0 tokens .*\nneeded: at least 1"),
        ("path", "", "data.path is not set"),
    ],
)
def test_a_limit_smaller_than_one_image(config, tmp_path, field, value, message):
    config.data.sample_align_tokens = 4
    setattr(config.data, field, value)
    with pytest.raises(ConfigError, match=message):
        prepare_data(config, tmp_path / "prepared")


def test_left_out_samples_count_against_the_tolerance(config, tmp_path, processor):
    """Two rejected by the build, three of 52 too long: 5 of 52, 9.6 %."""
    config.data.path = str(write_folder(tmp_path / "bad", processor, SAMPLES, num_rejected=2))
    config.data.seq_len_tokens = 76  # three texts are longer, whatever becomes of their images
    config.data.max_bad_fraction = 0.09
    with pytest.raises(DataError) as error:
        prepare_data(config, tmp_path / "prepared")
    assert error.value.found.startswith("2 samples rejected by the build and 3 that fit no row, of 52: 9.615%")
    assert "bad/rejects.jsonl" in error.value.found and "prepared/rejects.jsonl" in error.value.found
    assert "data.max_bad_fraction = 0.09" in error.value.needed
    config.data.max_bad_fraction = 0.1
    prepared = prepare_data(config, tmp_path / "prepared")
    assert prepared.num_rejected == 5
    lines = [json.loads(line) for line in (tmp_path / "prepared" / "rejects.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["sample-47", "sample-48", "sample-49"]
    assert lines[0]["reason"] == "too long for a row" and "a row has 76 tokens" in lines[0]["found"]


def test_rows_that_are_left_out_are_needed_beside_those_that_are_trained(config, mixture, tmp_path):
    """One epoch of 50 samples, one a row: 45 rows are enough, with 5 more skipped, too, with 6 not."""
    mixture("sources: [{path: data, max_epochs: 1}]\n")
    config.data.packing, config.training.steps, config.training.global_batch_rows = False, 9, 5
    prepared = prepare_data(config, tmp_path / "prepared")
    check_enough(config, prepared)
    check_enough(config, prepared, num_skipped_rows=5)
    with pytest.raises(DataError, match="50 rows"):
        check_enough(config, prepared, num_skipped_rows=6)
