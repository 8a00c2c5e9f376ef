"""What Megatron wrote on a grid comes back as the Hugging Face directory that was imported, bit for bit.

The checkpoints are those of test_grids.py's runs after import: step 1 has rate 0, so the ranks have loaded the weights,
cut them up, put them into their optimizer, computed with them, and saved them as they were. Exports of some are
imported once more and trained on from another grid (hf_import.FROM_EXPORT), where test_grids.py compares the losses.
"""

import pytest
import torch
from agreement import moments
from grids import ONE, PACKED, SMALL, num_ranks, sizes
from hf_import import EXPORTED, FROM_EXPORT, WITHOUT_OPTIMIZER, after_import, exported, hf_folder, imported
from safetensors.torch import load_file

from megatron_medx.checkpoint.convert import to_hf
from megatron_medx.checkpoint.layout.rules import bindings
from megatron_medx.checkpoint.megatron_files.megatron_directory import MegatronCheckpoint
from megatron_medx.checkpoint.megatron_files.torch_dist import TorchDistFolder
from megatron_medx.checkpoint.reports.inspection import inspect
from megatron_medx.checkpoint.sources.row_blocks import RowBlocks, has_row_blocks
from megatron_medx.checkpoint.verify import bit_equal
from megatron_medx.checkpoint.weights import read_hf_group

BF16_GRID = "tp2 dp2"


def in_bf16(runs):
    """Two steps in bf16 from the imported network, both of which move the weights."""

    def train(runs):
        start = f"checkpoint.start_from={imported(runs, 'dense').result()}"
        words = ("precision.dtype=bf16", "training.steps=2", "optimizer.warmup_tokens=0")
        return runs.train("bf16", *SMALL, *PACKED, *words, start, grid=BF16_GRID)

    return runs.once("bf16", train)


@pytest.fixture(scope="module", autouse=True)
def started(request, runs):
    """Start what the chosen tests of this module look at, all at once."""
    for item in request.session.items:
        if item.path == request.path:
            if {"name", "grid"} <= set(item.fixturenames):
                exported(runs, **item.callspec.params)
            elif item.function is test_conversion_of_bf16_takes_the_weights_of_the_model:
                in_bf16(runs)


def tensors_of(folder):
    """Key -> tensor, experts in the hub's layout, read by safetensors itself."""
    tensors = load_file(folder / "model.safetensors")
    for key, part in tensors.items():
        if key.endswith("experts.gate_up_proj") and part.shape[1] != 72:  # transformers may save [experts, out, in]
            tensors[key] = part.transpose(1, 2)
        elif key.endswith("experts.down_proj") and part.shape[2] != 72:
            tensors[key] = part.transpose(1, 2)
    return tensors


@pytest.mark.parametrize(("name", "grid"), EXPORTED)
def test_the_export_is_bit_equal_to_what_was_imported(name, grid, runs):
    out = exported(runs, name, grid).result()
    run = after_import(runs, name, grid).result()
    assert run.column("lr")[0] == 0 < run.column("lr")[1]
    stored = TorchDistFolder(run.checkpoints / "iter_0000001")
    assert stored.has_optimizer == (WITHOUT_OPTIMIZER not in EXPORTED[name, grid])
    expected, found = tensors_of(hf_folder(runs, name)), tensors_of(out)
    assert found.keys() == expected.keys()
    assert [key for key in expected if not bit_equal(found[key], expected[key])] == []
    trained = TorchDistFolder(run.checkpoints / "iter_0000003")
    moved = [key for key in stored.specs if not bit_equal(stored.read(key), trained.read(key))]
    assert len(moved) == len(stored.specs), "the steps after it do move every weight"


def test_there_are_grids_of_every_kind():
    """Eight or more grids, with experts and without, with and without optimizer, in every kind of pieces."""
    grids = {grid for _, grid in EXPORTED}
    assert len(grids - {ONE}) >= 8
    assert {"tp", "pp", "vpp", "cp", "dp", "ep", "first", "last"} <= {axis for grid in grids for axis in sizes(grid)}
    for scenario in ("dense", "experts"):
        kept = [WITHOUT_OPTIMIZER not in words for (name, _), words in EXPORTED.items() if name == scenario]
        assert set(kept) == {True, False}
    assert all((name, writer) in EXPORTED for (name, _), writer in FROM_EXPORT.items())
    assert all(writer != reader for (_, reader), writer in FROM_EXPORT.items())


@pytest.mark.parametrize(("name", "grid"), [("dense", "tp2 pp2 vpp2 dp2 selective"), ("experts", "dp4 ep4")])
def test_inspect_says_on_which_grid_and_with_what_it_was_written(name, grid, runs):
    exported(runs, name, grid).result()
    report = inspect(after_import(runs, name, grid).result().checkpoints / "iter_0000001")
    assert report["has_optimizer"] == (WITHOUT_OPTIMIZER not in EXPORTED[name, grid])
    assert report["grid"]["world_size"] == num_ranks(grid)
    assert report["consumed_rows"] == 4


@pytest.mark.parametrize(("name", "grid"), [("dense", "tp4"), ("experts", "dp4 ep4")])
def test_rows_are_the_same_from_the_chunks_of_many_ranks(name, grid, runs):
    """Averaging reads some rows at a time: here 7, which no chunk's number of rows is a multiple of."""
    exported(runs, name, grid).result()
    checkpoint = MegatronCheckpoint(after_import(runs, name, grid).result().checkpoints / "iter_0000001")
    rows, compared = RowBlocks(checkpoint), 0
    for one in filter(has_row_blocks, bindings(checkpoint.model)):
        (whole,) = read_hf_group(checkpoint, one)
        assert bit_equal(torch.cat(list(rows.read(one, 7))), whole), one.megatron_key
        compared += 1
    assert compared > 60


def test_conversion_of_bf16_takes_the_weights_of_the_model(runs, tmp_path):
    """The optimizer holds the same in fp32, with bits that the model's weights have not."""
    run = in_bf16(runs).result().ok()
    to_hf(run.checkpoints, tmp_path / "hf")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    stored = TorchDistFolder(run.checkpoints / "iter_0000002")
    masters = moments(run, 2, "param")
    assert masters.keys() == stored.specs.keys()
    for key, master in masters.items():
        weights = stored.read(key)
        assert bit_equal(master.to(torch.bfloat16), weights) and not torch.equal(master, weights.float()), key
    key = "model.language_model.layers.1.mlp.down_proj.weight"
    assert bit_equal(found[key], masters["decoder.layers.1.mlp.linear_fc2.weight"].to(torch.bfloat16))
