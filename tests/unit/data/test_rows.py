"""Rows as microbatches, and what happens to samples that changed since they were built."""

import json
import logging
import pickle

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from megatron_medx.config.flops import step_flops
from megatron_medx.data.chat import EncodedSample
from megatron_medx.data.collate import collate
from megatron_medx.data.plan.prepare import prepare_data
from megatron_medx.data.plan.row_plan import aligned_tokens
from megatron_medx.data.rows import RowDataset, build_row_dataset
from megatron_medx.errors import ConfigError, DataError

CHEST, HEART, BONE = "images/cr-chest.dcm", "images/us-heart.dcm", "images/nm-bone.dcm"

FIELDS = (
    "tokens_1S",
    "labels_1S",
    "loss_weights_1S",
    "positions_3S",
    "cu_seqlens",
    "pixels_PC",
    "grids_I3",
    "vision_index_M",
)


@pytest.fixture
def records(chat):
    """Four samples: one image, two images, none, a document."""
    return [
        chat("one", "What?", "X-ray", (CHEST,)),
        chat("two", "Which two?", "X-ray and ultrasound", (CHEST, HEART)),
        chat("text", "What is J18?", "Pneumonia"),
        {"id": "doc", "content": "A document."},
    ]


@pytest.fixture
def damaged_folder(write_folder, chat):
    """A function: records -> a folder with one more sample, `bad`, of whose image one byte is no longer what it was."""

    def make(records):
        folder = write_folder([*records, chat("bad", "What?", "Bone", (BONE,))])
        [shard] = (folder / "shards").iterdir()
        content = bytearray(shard.read_bytes())
        row = pq.read_table(folder / "index.parquet").filter(pc.field("id") == "bad").to_pylist()[0]
        content[row["members"][1]["offset"] + 5000] ^= 1
        shard.write_bytes(content)
        return folder

    return make


def encoded(sample_id, tokens, weights):
    return EncodedSample(
        sample_id,
        torch.tensor(tokens),
        torch.tensor(weights, dtype=torch.float32),
        torch.zeros(0, 3, dtype=torch.int64),
    )


def collated(samples, **layout):
    """A row of the samples; nobody asked for their images."""
    return collate(samples, torch.zeros(0, 6), **layout)


def test_worked_example_of_the_docstring():
    samples = [encoded("a", [5, 6, 7], [0, 1, 1]), encoded("b", [8, 9], [0, 1])]
    row = collated(samples, image_token_id=99, merge_size=2, align_tokens=4)
    assert row.tokens_1S.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0]]
    assert row.labels_1S.tolist() == [[6, 7, 0, 9, 0, 0, 0, 0]]
    assert row.loss_weights_1S.tolist() == [[1, 1, 0, 1, 0, 0, 0, 0]]
    assert row.cu_seqlens.tolist() == [0, 3, 5, 8] and row.cu_seqlens.dtype == torch.int32
    assert row.positions_3S.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]] * 3
    assert row.sample_ids == ["a", "b"] and row.sample_tokens == [3, 2]


def test_worked_example_with_aligned_samples():
    samples = [encoded("a", [5, 6, 7], [0, 1, 1]), encoded("b", [8, 9], [0, 1])]
    row = collated(samples, image_token_id=99, merge_size=2, sample_align_tokens=4)
    assert row.tokens_1S.tolist() == [[5, 6, 7, 0, 8, 9, 0, 0]]
    assert row.labels_1S.tolist() == [[6, 7, 0, 0, 9, 0, 0, 0]]
    assert row.loss_weights_1S.tolist() == [[1, 1, 0, 0, 1, 0, 0, 0]]
    assert row.cu_seqlens.tolist() == [0, 4, 8]
    assert row.positions_3S.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]] * 3
    assert row.sample_ids == ["a", "b"] and row.sample_tokens == [3, 2]


def test_a_sample_that_fits_its_alignment_gets_no_padding_and_the_tail_is_a_segment():
    samples = [encoded("a", [5, 6, 7, 8], [0, 1, 1, 1]), encoded("b", [9], [0])]
    row = collated(samples, image_token_id=99, merge_size=2, pad_token_id=3, sample_align_tokens=4, align_tokens=16)
    assert row.tokens_1S.tolist() == [[5, 6, 7, 8, 9, *[3] * 11]]
    assert row.cu_seqlens.tolist() == [0, 4, 8, 16] and row.sample_tokens == [4, 1]
    assert row.positions_3S[0].tolist() == [*range(4), *range(4), *range(8)]
    with pytest.raises(DataError, match=r"a row of 8 tokens \(samples a, b\)"):
        collated(samples, image_token_id=99, merge_size=2, sample_align_tokens=4, pad_to_tokens=7)


def test_positions_count_on_behind_an_image():
    """The longest side of the image counts, as it does for text: 2 x 3 tokens at 1, so padding goes on at 4."""
    image = encoded("a", [5, *[99] * 6], [0] * 7)
    image.grids_I3 = torch.tensor([[1, 4, 6]])
    row = collated([image], image_token_id=99, merge_size=2, sample_align_tokens=4)
    assert row.positions_3S.tolist() == [[0, *[1] * 6, 4], [0, 1, 1, 1, 2, 2, 2, 4], [0, 1, 2, 3, 1, 2, 3, 4]]
    assert row.vision_index_M.tolist() == [1, 2, 3, 4, 5, 6]


def test_padding_to_a_fixed_length():
    samples = [encoded("a", [5, 6, 7], [0, 1, 1])]
    row = collated(samples, image_token_id=99, merge_size=2, pad_token_id=4, pad_to_tokens=5)
    assert row.tokens_1S.tolist() == [[5, 6, 7, 4, 4]] and row.cu_seqlens.tolist() == [0, 3, 5]
    exact = collated(samples, image_token_id=99, merge_size=2, pad_to_tokens=3)
    assert exact.cu_seqlens.tolist() == [0, 3]
    with pytest.raises(DataError, match=r"a row of 3 tokens \(samples a\)"):
        collated(samples, image_token_id=99, merge_size=2, pad_to_tokens=2)


@pytest.mark.parametrize("sample_align_tokens", [1, 8])
@pytest.mark.parametrize("packing", [False, True])
def test_every_row_is_whole(write_folder, run_config, packing, sample_align_tokens, records):
    config = run_config(
        write_folder(records), packing=packing, seq_len_tokens=128, sample_align_tokens=sample_align_tokens
    )
    dataset = build_row_dataset(config, align_tokens=8)
    seen = []
    for j in range(dataset.plan.rows_per_epoch):
        row = dataset[j]
        length = row.tokens_1S.shape[1]
        assert length % 8 == 0
        assert row.labels_1S.shape == row.loss_weights_1S.shape == (1, length) and row.positions_3S.shape == (3, length)
        assert row.cu_seqlens[0] == 0 and row.cu_seqlens[-1] == length
        assert len(row.cu_seqlens) - 1 - len(row.sample_ids) in (0, 1)
        segments = row.cu_seqlens.diff().tolist()[: len(row.sample_ids)]
        assert segments == [aligned_tokens(tokens, sample_align_tokens) for tokens in row.sample_tokens]
        assert len(row.pixels_PC) == row.grids_I3.prod(dim=1).sum() == 4 * len(row.vision_index_M)
        assert (row.tokens_1S[0, row.vision_index_M] == config.model.image_token_id).all()
        learned = row.loss_weights_1S[0] > 0
        assert torch.equal(row.labels_1S[0, :-1][learned[:-1]], row.tokens_1S[0, 1:][learned[:-1]])
        assert (row.labels_1S[0][~learned] == 0).all() and learned.any()
        # nothing is learned across the border of two segments
        assert not learned[row.cu_seqlens[1:].long() - 1].any()
        assert not (row.labels_1S == config.model.image_token_id).any()
        seen += row.sample_ids
    assert sorted(seen) == ["doc", "one", "text", "two"]
    assert (dataset.plan.rows_per_epoch < 4) == packing


def test_rows_without_image_have_empty_tensors_of_the_right_kind(write_folder, run_config, records):
    row = build_row_dataset(run_config(write_folder(records[2:3])))[0]
    assert row.pixels_PC.shape == (0, 1536) and row.pixels_PC.dtype == torch.float32
    assert row.grids_I3.shape == (0, 3) and row.grids_I3.dtype == torch.int64
    assert row.vision_index_M.shape == (0,) and row.vision_index_M.dtype == torch.int64


@pytest.mark.parametrize("sample_align_tokens", [1, 8])
def test_packing_changes_no_sample(write_folder, run_config, sample_align_tokens, records):
    """Each sample of a packed row is what it is alone: tokens, labels, weights, positions and patches."""
    folder = write_folder(records)
    config = run_config(folder, packing=True, sample_align_tokens=sample_align_tokens)
    packed = build_row_dataset(config, align_tokens=16)[0]
    alone = build_row_dataset(run_config(folder))
    rows = {alone[j].sample_ids[0]: alone[j] for j in range(4)}
    patch = 0
    for index, sample_id in enumerate(packed.sample_ids):
        start, row = int(packed.cu_seqlens[index]), rows[sample_id]
        segment = slice(start, start + packed.sample_tokens[index])
        assert packed.sample_tokens[index] == row.tokens_1S.shape[1]
        assert (packed.loss_weights_1S[0, segment.stop : packed.cu_seqlens[index + 1]] == 0).all()
        for name in ("tokens_1S", "labels_1S", "loss_weights_1S", "positions_3S"):
            assert torch.equal(getattr(packed, name)[:, segment], getattr(row, name))
        assert torch.equal(packed.pixels_PC[patch : patch + len(row.pixels_PC)], row.pixels_PC)
        patch += len(row.pixels_PC)


def test_rows_depend_on_the_alignment_of_samples_and_not_on_the_grid(write_folder, run_config, records):
    folder = write_folder(records)

    def rows(sample_align_tokens, align_tokens):
        config = run_config(folder, packing=True, seq_len_tokens=128, sample_align_tokens=sample_align_tokens)
        plan = build_row_dataset(config, align_tokens).plan
        return [plan.row(j) for j in range(plan.rows_per_epoch)]

    assert rows(1, 1) == rows(1, 16) and rows(64, 1) == rows(64, 16)
    assert rows(64, 1) != rows(1, 1)


def test_a_sample_that_alignment_makes_too_long_is_refused_with_the_numbers(write_folder, run_config, records):
    folder = write_folder(records[3:])
    length = build_row_dataset(run_config(folder))[0].sample_tokens[0]
    exact = run_config(folder, seq_len_tokens=length, sample_align_tokens=length)
    assert build_row_dataset(exact)[0].cu_seqlens.tolist() == [0, length]
    rounded = run_config(folder, seq_len_tokens=length, sample_align_tokens=length - 1)
    with pytest.raises(DataError, match="0 samples rejected by the build and 1 that fit no row, of 1: 100"):
        build_row_dataset(rounded)


@pytest.mark.parametrize("sample_align_tokens", [1, 8])
@pytest.mark.parametrize("packing", [False, True])
def test_the_cost_of_a_row_is_that_of_the_row_that_is_made(
    write_folder, run_config, records, packing, sample_align_tokens
):
    """Headers tell what decoding gives: every segment, padding too, and every image. A frozen tower costs less."""
    folder = write_folder(records)
    config = run_config(folder, packing=packing, seq_len_tokens=200, sample_align_tokens=sample_align_tokens)
    costs = {}
    for freeze in ((), ("vision",)):
        config.training.freeze = freeze
        dataset = build_row_dataset(config, align_tokens=8, pad_to_tokens=200 if packing else None)
        for j in range(2 * dataset.plan.rows_per_epoch):
            row = dataset[j]
            patches = row.grids_I3.prod(dim=1).tolist()
            flops = step_flops(config.model, row.cu_seqlens.diff().tolist(), patches, freeze)
            assert dataset.cost(j) == flops["total"]
            costs[j, freeze] = dataset.cost(j), len(patches)
    assert all(
        cost > costs[j, ("vision",)][0] for (j, freeze), (cost, images) in costs.items() if not freeze and images
    )


def test_the_cost_is_that_of_the_index_whatever_was_damaged(damaged_folder, run_config, records):
    dataset = build_row_dataset(run_config(damaged_folder(records), max_bad_fraction=0.2))
    before = [dataset.cost(j) for j in range(10)]
    assert [dataset[j] for j in range(10)] and len(dataset.bad_samples) == 1
    assert [dataset.cost(j) for j in range(10)] == before


def test_a_damaged_sample_stops_the_run(damaged_folder, run_config, records):
    dataset = build_row_dataset(run_config(damaged_folder(records)))
    with pytest.raises(DataError, match=r"\.tar, bytes \d+ to \d+ \(sample number 4\) changed since it was built"):
        [dataset[j] for j in range(5)]


def test_a_shard_that_is_gone_stops_the_run_whatever_is_allowed(write_folder, run_config, records):
    """Other ranks may still see it: leaving samples out here would give the ranks of a row different rows."""
    dataset = build_row_dataset(run_config(write_folder(records), max_bad_fraction=0.9))
    [shard] = (dataset.readers[0].folder / "shards").iterdir()
    shard.unlink()
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        dataset[0]


@pytest.mark.parametrize("packing", [False, True])
def test_a_damaged_sample_is_left_out_and_moves_no_other(damaged_folder, run_config, caplog, packing, records):
    config = run_config(damaged_folder(records), max_bad_fraction=0.2, packing=packing, seq_len_tokens=100)
    dataset = build_row_dataset(config)
    ids = ["one", "two", "text", "doc", "bad"]
    with caplog.at_level(logging.WARNING):
        rows = {j: dataset[j] for j in range(20)}
    assert caplog.text.count("sample 4 of") == 1 and dataset.bad_samples == {(0, 4)}
    for j, row in rows.items():
        planned = [ids[number] for _, number in dataset.plan.row(j) if ids[number] != "bad"]
        assert row.sample_ids == planned or (not planned and len(row.sample_ids) == 1 and row.sample_ids != ["bad"])
    again = build_row_dataset(config)
    for j in (19, 3, 0, 12):
        for name in FIELDS:
            assert torch.equal(getattr(again[j], name), getattr(rows[j], name))


def test_damaged_samples_are_written_down(damaged_folder, run_config, records, tmp_path):
    config = run_config(damaged_folder(records), max_bad_fraction=0.2)
    prepare_data(config, tmp_path / "prepared")
    dataset = RowDataset(config, tmp_path / "prepared", rejects=tmp_path / "rejects.jsonl")
    [dataset[j] for j in range(10)]
    [line] = (tmp_path / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == 4 and json.loads(line)["reason"] == "changed since it was built"


def test_too_many_damaged_samples_stop_the_run(damaged_folder, run_config, records):
    dataset = build_row_dataset(run_config(damaged_folder(records), max_bad_fraction=0.3))
    dataset.bad_samples = {(0, 0)}  # as if met before
    with pytest.raises(DataError, match=r"2 samples cannot be used; the last: .*\n.*at most 1.5"):
        [dataset[j] for j in range(5)]


def test_a_rank_decodes_the_images_that_it_wants(write_folder, run_config, records, tmp_path):
    config = run_config(write_folder(records), packing=True)
    prepare_data(config, tmp_path / "prepared")
    everything = RowDataset(config, tmp_path / "prepared")[0]
    assert len(everything.grids_I3) == 3
    last = RowDataset(config, tmp_path / "prepared", wanted=lambda grids_I3: [len(grids_I3) - 1])[0]
    nothing = RowDataset(config, tmp_path / "prepared", wanted=lambda grids_I3: [])[0]
    count = int(everything.grids_I3[2].prod())
    assert torch.equal(last.pixels_PC, everything.pixels_PC[-count:]) and nothing.pixels_PC.shape == (0, 1536)
    for name in set(FIELDS) - {"pixels_PC"}:
        assert torch.equal(getattr(nothing, name), getattr(everything, name))


def test_processor_and_model_must_agree(write_folder, run_config, records):
    config = run_config(write_folder(records))
    config.model.image_token_id = 7
    config.model.vision.patch_size = 14
    config.model.vocab_size = 4000
    with pytest.raises(
        ConfigError, match=r"image_token_id = 7, processor 4082.*patch_size = 14.*vocab_size = 4000, tokenizer 4096"
    ):
        build_row_dataset(config)


def test_a_reader_process_gives_the_same_rows(write_folder, run_config, records):
    dataset = build_row_dataset(run_config(write_folder(records)))
    sent = pickle.dumps(dataset)  # to a worker process
    assert len(sent) < 20_000, "without its tables"
    assert torch.equal(pickle.loads(sent)[2].tokens_1S, dataset[2].tokens_1S)


def test_data_path_is_needed(run_config):
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        build_row_dataset(run_config(""))


def test_processor_is_found_in_the_data_folder(demo, run_config):
    config = run_config(demo)
    config.data.processor = ""
    assert build_row_dataset(config).plan.rows_per_epoch > 300
