"""The index as a table: equal, sample by sample, to what the rule for one sample says."""

import hashlib
import io
import json

import numpy as np
import pytest
from synthetic_index import write_index

from megatron_medx.config.flops import flops_polynomial, step_flops
from megatron_medx.data.image_grid import smart_resize
from megatron_medx.data.plan import table as table_module
from megatron_medx.data.plan.budget import ImageExtent
from megatron_medx.data.plan.row_plan import aligned_tokens
from megatron_medx.data.plan.table import TableSettings, open_table, resized, write_table
from megatron_medx.errors import DataError
from megatron_medx.recipes import get_recipe

MODEL = get_recipe("demo").model


def settings_of(**changes) -> TableSettings:
    values = {
        "seq_len_tokens": 301,
        "sample_align_tokens": 1,
        "max_row_patches": 0,
        "min_pixels": 4096,
        "max_pixels": 65536,
        "patch_size": 16,
        "merge_size": 2,
        "flops": flops_polynomial(MODEL),
    }
    return TableSettings(**values | changes)


@pytest.fixture(scope="module")
def samples():
    """1,500 of all sorts: text alone, pictures, stacks, too long ones, and shapes that no processor takes."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(1500):
        sides = rng.integers(1, 700, (rng.integers(0, 6), 2)).tolist()
        pictures = [(width, height, 0) for width, height in sides]
        stack = [(96, 80, 5)] * int(rng.integers(0, 40)) if rng.random() < 0.2 else []
        found.append((int(rng.integers(1, 340)) + 5 * len(stack) + len(pictures), pictures + stack))
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"sample_align_tokens": 8}, {"max_row_patches": 400}, {"max_pixels": 2048, "sample_align_tokens": 4}],
)
def test_equal_to_the_rule_for_one_sample(samples, tmp_path, monkeypatch, changes):
    monkeypatch.setattr(table_module, "BATCH_SAMPLES", 331)
    settings = settings_of(**changes)
    rejects = io.StringIO()
    folder = write_index(tmp_path / "data", samples)
    summary = write_table(folder, tmp_path / "0.npy", settings, rejects)
    table = open_table(tmp_path / "0.npy")
    num_thinned = num_rejected = 0
    for number, (text_tokens, images) in enumerate(samples):
        try:
            fitted = settings.fit(text_tokens, [ImageExtent(*image) for image in images])
        except DataError:
            fitted = None
        record = table[number]
        if fitted is None:
            num_rejected += 1
            assert (record["tokens"], record["patches"], record["cost"]) == (0, 0, 0)
            continue
        num_thinned += len(fitted.kept) < len(images)
        assert (record["tokens"], record["patches"]) == (fitted.tokens, fitted.patches)
        segment = aligned_tokens(fitted.tokens, settings.sample_align_tokens)
        assert segment <= settings.seq_len_tokens
        patches = [rows * columns for _, rows, columns in fitted.grids]
        assert record["cost"] == np.float32(step_flops(MODEL, [segment], patches)["total"])
    assert summary.num_samples == len(table) == len(samples)
    assert summary.num_tokens == table["tokens"].sum()
    assert (summary.num_thinned, summary.num_rejected) == (num_thinned, num_rejected)
    assert num_thinned > 20 and num_rejected > 20 and summary.num_scaled > 5
    lines = [json.loads(line) for line in rejects.getvalue().splitlines()]
    assert [line["id"] for line in lines] == [f"sample-{number}" for number in np.flatnonzero(table["tokens"] == 0)]
    assert {line["reason"] for line in lines} == {"too long for a row", "too long and thin"}
    assert {line["file"] for line in lines} == {str(folder)}


def test_where_the_bytes_lie(samples, tmp_path):
    write_table(write_index(tmp_path / "data", samples), tmp_path / "0.npy", settings_of())
    table = open_table(tmp_path / "0.npy")
    assert not table.flags.writeable
    for number in (0, 1, 1499):
        record, digest = table[number], hashlib.sha256(str(number).encode()).digest()
        assert (record["shard"], record["offset"], record["size"]) == (number % 3, 512 * number, 1024)
        assert record["hash"] == int.from_bytes(digest[:8], "little")


def test_what_is_counted(tmp_path):
    """A whole one, one that loses slices, one that loses resolution, one that loses both, one that fits nowhere."""
    slices, picture = [(96, 96, 5)] * 40, (256, 256, 0)
    samples = [(50, [picture]), (250, slices), (300, [picture]), (490, slices), (302, [])]
    summary = write_table(write_index(tmp_path, samples), tmp_path / "0.npy", settings_of())
    assert (summary.num_thinned, summary.num_scaled, summary.num_rejected) == (2, 2, 1)


@pytest.mark.parametrize(("factor", "min_pixels", "max_pixels"), [(32, 65536, 16777216), (28, 3136, 401408)])
def test_a_hundred_thousand_sizes_round_as_one_does(factor, min_pixels, max_pixels):
    """Ties (odd multiples of half a factor), sides of 1 px, shapes at the limit of 200, and headers of 60,000 px."""
    rng = np.random.default_rng(1)
    heights = rng.integers(1, 5000, 100_000)
    widths = np.maximum(1, heights * np.exp(rng.normal(0, 1, heights.size))).astype(np.int64)
    heights[:30_000], widths[:30_000] = rng.integers(1, 300, (2, 30_000)) * (factor // 2)
    heights[30_000:31_000] = 1
    widths[30_000:31_000] = rng.integers(150, 250, 1000)
    widths[31_000:32_000] = 60_000
    refused = 0
    tokens = resized(heights, widths, factor, min_pixels, max_pixels).tolist()
    for height, width, found in zip(heights.tolist(), widths.tolist(), tokens, strict=True):
        try:
            tall, wide = smart_resize(height, width, factor, min_pixels, max_pixels)
        except DataError:
            tall = wide = 0
            refused += 1
        assert found == tall * wide // factor**2
    assert refused > 100


def test_a_sample_without_tokens_is_counted(tmp_path):
    rejects = io.StringIO()
    summary = write_table(write_index(tmp_path, [(5, []), (0, [])]), tmp_path / "0.npy", settings_of(), rejects)
    assert (summary.num_rejected, open_table(tmp_path / "0.npy")["tokens"].tolist()) == (1, [5, 0])
    assert json.loads(rejects.getvalue())["reason"] == "no tokens"


def test_an_empty_index(tmp_path):
    with pytest.raises(DataError, match="has no samples"):
        write_table(write_index(tmp_path, []), tmp_path / "0.npy", settings_of())


def test_a_table_that_is_missing_or_of_another_layout(tmp_path):
    with pytest.raises(DataError, match="no table"):
        open_table(tmp_path / "0.npy")
    np.save(tmp_path / "0.npy", np.zeros(3))
    with pytest.raises(DataError, match="holds float64"):
        open_table(tmp_path / "0.npy")
