"""Reading ahead and early write-back, and what a reader says of files that are not what their index says."""

import os
import pickle
import threading

import pytest
import torch
from safetensors.torch import save_file

from megatron_medx.checkpoint.hugging_face.safetensors_stream import SafetensorsFile, write_safetensors
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.megatron_files.torch_dist import (
    TorchDistFolder,
    state_objects,
    write_data_file,
    write_index,
)
from megatron_medx.checkpoint.writing import streaming
from megatron_medx.checkpoint.writing.streaming import EarlyWriteback, read_ahead
from megatron_medx.errors import CheckpointError

TENSORS = {"a": torch.arange(35.0).reshape(5, 7), "b": torch.tensor(2.5), "c": torch.arange(11.0).bfloat16()}
SPECS = {key: TensorSpec(tuple(tensor.shape), tensor.dtype) for key, tensor in TENSORS.items()}


def write_torch_dist(folder):
    """A folder with one data file and two objects."""
    folder.mkdir()
    objects = state_objects({"module": 2})
    entries = write_data_file(folder / "__0_0.distcp", SPECS, iter(TENSORS.items()), objects)
    write_index(folder, SPECS, {"__0_0.distcp": entries})


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_items_come_in_order_and_once(count):
    assert list(read_ahead(iter(range(count)))) == list(range(count))


def test_the_next_item_is_made_while_the_last_is_used_and_no_more():
    made, third = [], threading.Event()

    def items():
        for number in range(5):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    ahead = read_ahead(items())
    assert [next(ahead), next(ahead)] == [0, 1]
    assert third.wait(10)
    ahead.close()
    assert made == [0, 1, 2]


@pytest.mark.parametrize("error", [CheckpointError("found", "needed", "do"), KeyboardInterrupt()])
def test_an_exception_comes_in_its_items_place(error):
    def items():
        yield 1
        raise error

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(type(error)):
        next(ahead)


def test_a_growing_file_is_sent_to_the_disk_in_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "WRITEBACK_BYTES", 10)
    sizes = []
    monkeypatch.setattr(os, "posix_fadvise", lambda number, *_: sizes.append(os.fstat(number).st_size))
    with (tmp_path / "file").open("wb") as file:
        writeback = EarlyWriteback(file)
        for length in (9, 1, 3, 25, 9):
            file.write(b"x" * length)
            writeback.advance()
    assert sizes == [10, 38]
    assert (tmp_path / "file").stat().st_size == 47


def test_both_formats_hold_what_was_sent_in_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "WRITEBACK_BYTES", 1)
    write_safetensors(tmp_path / "file", SPECS, iter(TENSORS.items()))
    write_torch_dist(tmp_path / "folder")
    for stored in (SafetensorsFile(tmp_path / "file"), TorchDistFolder(tmp_path / "folder")):
        assert stored.specs == SPECS
        assert all(torch.equal(stored.read(key), tensor) for key, tensor in TENSORS.items())


def test_a_tensor_that_was_read_does_not_change_with_the_file(tmp_path):
    save_file(TENSORS, tmp_path / "file")
    read = SafetensorsFile(tmp_path / "file").read("a")
    with (tmp_path / "file").open("r+b") as file:
        file.write(b"\xff" * (tmp_path / "file").stat().st_size)
    assert torch.equal(read, TENSORS["a"])


def test_a_file_that_is_cut_or_deleted_while_in_use_is_told(tmp_path):
    save_file({"a": TENSORS["a"]}, tmp_path / "file")
    opened = SafetensorsFile(tmp_path / "file")
    os.truncate(tmp_path / "file", (tmp_path / "file").stat().st_size - 9)
    with pytest.raises(CheckpointError, match="ends after 131 of the 140 bytes of a"):
        opened.read("a")
    (tmp_path / "file").unlink()
    with pytest.raises(CheckpointError, match=r"file cannot be read: .*No such file"):
        opened.read("a")


def _with_index(folder, change):
    """Write a folder, change its index, open it."""
    write_torch_dist(folder)
    index = pickle.loads((folder / ".metadata").read_bytes())
    change(index)
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    return TorchDistFolder(folder)


def test_a_chunk_that_is_not_the_indexed_one_is_refused(tmp_path):
    def swap(index):
        of_key = {entry.fqn: entry for entry in index.storage_data}
        index.storage_data[of_key["a"]] = index.storage_data[of_key["c"]]

    opened = _with_index(tmp_path / "folder", swap)
    with pytest.raises(CheckpointError, match=r"a in .* holds another tensor than its index says"):
        opened.read("a")


def test_a_chunk_outside_its_tensor_is_refused(tmp_path):
    def turn(index):
        index.state_dict_metadata["a"].size = torch.Size([7, 5])

    with pytest.raises(CheckpointError, match=r"a in .*: a chunk reaches beyond \[7, 5\]"):
        _with_index(tmp_path / "folder", turn)
