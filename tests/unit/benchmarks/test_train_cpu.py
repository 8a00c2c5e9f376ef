"""The comparison of training on a CPU: the rival's batches hold our samples, and unequal work is found out."""

import json

import pytest
import torch

from benchmarks import train_cpu
from benchmarks.train_cpu import Side, check_same_work
from benchmarks.train_cpu_rival import IGNORED, padded_batch, samples_of_row
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.samples import SampleNotes

START, IMAGE = 90, 91


def row() -> Microbatch:
    """A sample of 5 tokens with an image of 2 x 2 patches, one of 3 of which the middle one is no target, a tail."""
    tokens = [START, IMAGE, 7, 8, 9, 4, 5, 6, 0, 0]
    weights = [0, 1, 1, 1, 0, 0, 2, 0, 0, 0]
    labels = [0, 7, 8, 9, 0, 0, 6, 0, 0, 0]
    return Microbatch(
        tokens_1S=torch.tensor([tokens]),
        labels_1S=torch.tensor([labels]),
        loss_weights_1S=torch.tensor([weights]).float(),
        positions_3S=torch.zeros(3, 10, dtype=torch.int64),
        cu_seqlens=torch.tensor([0, 5, 8, 10], dtype=torch.int32),
        pixels_PC=torch.arange(8.0).reshape(4, 2),
        grids_I3=torch.tensor([[1, 2, 2]]),
        vision_index_M=torch.tensor([1]),
        sample_ids=["a", "b"],
        sample_tokens=[5, 3],
        sample_folders=[0, 0],
        sample_notes=[SampleNotes(), SampleNotes()],
    )


def test_a_row_comes_apart_into_its_samples():
    first, second = samples_of_row(row(), START)
    assert first["tokens"].tolist() == [START, IMAGE, 7, 8, 9] and second["tokens"].tolist() == [4, 5, 6]
    assert first["labels"].tolist() == [IGNORED, IGNORED, 7, 8, 9]
    assert second["labels"].tolist() == [IGNORED, IGNORED, 6]
    assert len(first["pixels"]) == 1 and first["pixels"][0].shape == (4, 2) and not second["pixels"]
    assert first["grids"].tolist() == [[1, 2, 2]] and len(second["grids"]) == 0


def test_a_batch_is_padded_on_the_right():
    batch = padded_batch(list(samples_of_row(row(), START)), pad_token_id=0, image_token_id=IMAGE)
    assert batch["input_ids"].tolist() == [[START, IMAGE, 7, 8, 9], [4, 5, 6, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["labels"][1].tolist() == [IGNORED, IGNORED, 6, IGNORED, IGNORED]
    assert batch["mm_token_type_ids"].tolist() == [[0, 1, 0, 0, 0], [0] * 5]
    assert batch["pixel_values"].shape == (4, 2) and batch["image_grid_thw"].tolist() == [[1, 2, 2]]


def test_a_batch_without_images_names_none():
    assert "pixel_values" not in padded_batch([list(samples_of_row(row(), START))[1]], 0, IMAGE)


@pytest.mark.parametrize(
    "rival", [Side(90, 1.0, [2.0, 1.0]), Side(100, 1.0, [2.0, 1.01])], ids=["other tokens", "another loss"]
)
def test_unequal_work_is_found_out(rival):
    with pytest.raises(SystemExit, match="not the same work"):
        check_same_work(Side(100, 1.0, [2.0, 1.0]), rival)
    check_same_work(Side(100, 1.0, [2.0, 1.0]), Side(100, 9.0, [2.0, 1.0 + 5e-4]))


@pytest.mark.parametrize(("equal", "code"), [(1.0, 0), (0.99, 1)])
def test_the_exit_code_says_whether_both_targets_are_reached(equal, code, monkeypatch, capsys):
    ratios = {"mixed": 1.6, "equal": equal}
    figures = {"tokens_per_s": 800.0, "rival_tokens_per_s": 500.0, "rival_padded_share": 0.4}
    monkeypatch.setattr(train_cpu, "measure", lambda name, *_: figures | {"ratio": ratios[name]})
    assert train_cpu.main([]) == code
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["reached"] is (code == 0) and said["equal"]["ratio"] == equal
