"""Rows of a plan: by assumption, worked out by hand; from the demo's data folder, with its real lengths and sizes."""

import json
import math

import pyarrow.parquet as pq
import pytest
import yaml

from megatron_medx.config.flops import step_flops
from megatron_medx.data.index import INDEX_SCHEMA
from megatron_medx.errors import DataError
from megatron_medx.planner import sampling
from megatron_medx.planner.workload import Assumption, Load, Row, assumed_workload, run_workload
from megatron_medx.recipes import get_recipe


def test_the_default_assumption_by_hand():
    """8,192 slots: 4 samples of 2,048 tokens; 1,024 x 1,024 px are 32 x 32 tokens, 4 images make half of the row."""
    (row,) = assumed_workload(get_recipe("pretrain_8b"), Assumption()).rows
    assert row == Row((2048,) * 4, (4096,) * 4, (2048,) * 4)
    assert row.load == Load(8192, 4 * 2048**2, 4 * 4096, 4 * 4096**2, 4096)


def test_an_assumption_keeps_the_limits_of_the_run():
    config = get_recipe("demo")  # 512 slots, at most 25,600 px an image: 160 x 160 px are 5 x 5 tokens
    (row,) = assumed_workload(config, Assumption()).rows
    assert row.images == (100,) * round(256 / 25) and row.samples == (512,)
    config.data.packing = False
    (row,) = assumed_workload(config, Assumption(sample_tokens=90)).rows
    assert row.segments == (92,)  # aligned to 4, and a row of its own
    (row,) = assumed_workload(get_recipe("pretrain_8b"), Assumption(sample_tokens=3000)).rows
    assert row.segments == (3000, 3000, 2192)  # the tail is a segment of its own


def test_text_alone():
    workload = assumed_workload(get_recipe("pretrain_8b"), Assumption(image_share=0, sample_tokens=8192))
    assert workload.rows[0].images == () and workload.source == "assumed: samples of 8,192 tokens, no images"
    assert workload.mean == Load(8192, 8192**2, 0, 0, 0)


def test_model_flops_of_a_step_count_what_samples_hold_and_no_padding():
    config = get_recipe("pretrain_8b")
    workload = assumed_workload(config, Assumption(sample_tokens=3000))
    of_row = step_flops(config.model, (3000, 3000), workload.rows[0].images)
    assert workload.step_flops(config)["total"] == of_row["total"] * config.training.global_batch_rows
    assert workload.fill == 6000 / 8192


def test_without_a_data_folder_rows_are_assumed(tmp_path):
    config = get_recipe("pretrain_8b")
    config.data.path = str(tmp_path / "nothing")
    assert run_workload(config).is_assumed
    assert run_workload(config, Assumption(image_share=0)).rows[0].images == ()


def test_rows_of_the_demos_data(demo):
    config = get_recipe("demo")
    config.data.path = str(demo)
    workload = run_workload(config)
    assert not workload.is_assumed and "337 of 337 read" in workload.source
    index = pq.read_table(demo / "index.parquet").to_pydict()
    # every sample once; none of them is shortened in the demo's rows of 512 tokens
    lengths = sorted(tokens for row in workload.rows for tokens in row.samples)
    assert lengths == sorted(_tokens(index, number) for number in range(len(index["id"])))
    patches = sorted(patches for row in workload.rows for patches in row.images)
    assert patches == sorted(4 * tokens for of_sample in index["image_tokens"] for tokens in of_sample)
    for row in workload.rows:
        assert sum(row.segments) == 512 and all(length % 4 == 0 for length in row.segments)
        assert len(row.segments) in (len(row.samples), len(row.samples) + 1)
    assert workload.fill == pytest.approx(sum(lengths) / 512 / len(workload.rows))


def _tokens(index: dict, number: int) -> int:
    """The index counts each image as one placeholder."""
    images = index["image_tokens"][number]
    return index["text_tokens"][number] + sum(images) - len(images)


def test_unpacked_rows_are_as_long_as_their_sample(demo):
    config = get_recipe("demo")
    config.data.path, config.data.packing = str(demo), False
    workload = run_workload(config)
    assert all(len(row.samples) == 1 for row in workload.rows)
    for row in workload.rows:
        assert sum(row.segments) == math.ceil(row.samples[0] / 4) * 4


def test_a_mixture_gives_each_source_its_share_of_tokens(demo, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("manifest.json", "index.parquet"):
        (copy / name).write_bytes((demo / name).read_bytes())
    mixture = tmp_path / "mixture.yaml"
    sources = [{"path": str(demo), "weight": 0.75}, {"path": str(copy), "weight": 0.25}]
    mixture.write_text(yaml.safe_dump({"sources": sources}))
    config = get_recipe("demo")
    config.data.path = str(mixture)
    alone = get_recipe("demo")
    alone.data.path = str(demo)
    held = sum(sum(row.samples) for row in run_workload(alone).rows)
    mixed = sum(sum(row.samples) for row in run_workload(config).rows)
    assert mixed == pytest.approx(held / 0.75, rel=0.02)  # the first source is used up, the second gives a third of it


def test_of_a_large_index_a_bounded_part_is_read(tmp_path, monkeypatch):
    """12 places, 512 neighbors each, fewer where they have many images; the whole of it is never in memory."""
    from benchmarks.plan import skewed_samples

    with pq.ParquetWriter(tmp_path / "index.parquet", INDEX_SCHEMA) as writer:
        for start in range(0, 40_000, 2000):
            writer.write_batch(skewed_samples(start, 2000), row_group_size=2000)
    (tmp_path / "manifest.json").write_text("{}")
    config = get_recipe("pretrain_8b")
    config.data.path = str(tmp_path)
    workload = run_workload(config)
    assert "(6,144 of 40,000 read)" in workload.source
    assert 128 <= len(workload.rows) <= 300 and workload.fill > 0.95
    monkeypatch.setattr(sampling, "MOST_IMAGES", 1200)
    thinner = run_workload(config).source
    assert 500 < int(thinner.partition(" read")[0].rpartition("(")[2].partition(" of ")[0].replace(",", "")) < 3000


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1}))
    config = get_recipe("demo")
    config.data.path = str(tmp_path)
    with pytest.raises(DataError, match=r"no .*index\.parquet"):
        run_workload(config)


def test_samples_that_fit_no_row_are_refused(demo):
    config = get_recipe("demo")
    config.data.path, config.data.seq_len_tokens = str(demo), 8
    with pytest.raises(DataError, match="no sample that fits a row of 8 tokens"):
        run_workload(config)
