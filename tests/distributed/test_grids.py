"""A run from scratch is the same run on every grid.

Tolerance: 1e-5 on the first five losses; worst seen 9.5e-7, one unit in the last place (2026-11-22, gloo, fp32).
Gradient norms, summed in float64 by the CPU backend: worst seen 3.4e-6 of themselves (mergers alone on TP2).
Adam's first moments, tensor by tensor: worst seen 5.2e-6 of a tensor's norm.
"""

import warnings

import pytest
import torch
from medx_runs import GRIDS, assert_same_losses
from torch.distributed.checkpoint import FileSystemReader

from megatron_medx.checkpoint.torch_dist import TorchDistFolder

TOLERANCE = 1e-5
NORM_TOLERANCE, MOMENT_TOLERANCE = 1e-5, 2e-5

PLAN = {
    "tied": tuple(GRIDS),
    "untied, packed, own rates": ("1 process", "TP2 x PP2"),
    "merger alone": ("1 process", "PP2", "TP2"),
}
"""Scenario -> the grids that must agree."""


@pytest.fixture(scope="module", autouse=True)
def started(runs):
    """All runs of this module, started at once."""
    return {(name, grid): runs.scenario(name, grid) for name, grids in PLAN.items() for grid in grids}


@pytest.mark.parametrize("name", PLAN)
def test_first_five_losses_tokens_and_images_are_equal(name, started):
    runs = {grid: started[name, grid].result().ok() for grid in PLAN[name]}
    assert_same_losses({grid: run.column("loss")[:5] for grid, run in runs.items()}, TOLERANCE)
    first = runs["1 process"]
    assert len(first.column("loss")) >= 5
    for run in runs.values():
        for key in ("step", "tokens", "images", "lr"):
            assert run.column(key)[:5] == first.column(key)[:5], f"{key} of {run.folder.name}"
        norms = run.column("grad_norm")[:5]
        assert norms == pytest.approx(first.column("grad_norm")[:5], rel=NORM_TOLERANCE), run.folder.name


def test_losses_fall(started):
    losses = started["tied", "1 process"].result().ok().column("loss")
    assert losses[-1] < losses[0] - 0.5, losses


def test_a_step_without_any_image_is_among_them(started):
    """Otherwise equal losses would say nothing about the rows that nobody has an image for."""
    images = started["tied", "1 process"].result().ok().column("images")[:5]
    assert 0 in images and max(images) > 2, images


@pytest.mark.parametrize("grid", PLAN["untied, packed, own rates"])
def test_each_part_moves_at_its_own_rate(grid, started):
    """vision_lr=1e-30 leaves the tower where the frozen one of another run is; mergers and decoder move."""
    trained = weights(started["untied, packed, own rates", grid].result().ok())
    initial = weights(started["merger alone", "1 process"].result().ok())
    for key in trained.keys() & initial.keys():
        moved = (trained[key] - initial[key]).abs().max().item()
        if key.startswith("vision."):
            assert moved < 1e-28, f"{key} moved by {moved}"
        elif key.startswith("decoder."):
            assert moved > 1e-4, f"{key} moved by {moved}"


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid != "1 process"])
def test_adams_first_moments_are_equal(grid, started):
    """Adam forgives a gradient that is wrong by a factor: losses alone would not show it."""
    reference, moments = (first_moments(started["tied", name].result().ok()) for name in ("1 process", grid))
    assert moments.keys() == reference.keys() and len(moments) > 60
    relative = {key: ((moments[key] - value).norm() / value.norm()).item() for key, value in reference.items()}
    worst = max(relative, key=relative.get)
    assert relative[worst] < MOMENT_TOLERANCE, f"{worst}: {relative[worst]:.1e}"


def weights(run):
    """Checkpoint key -> tensor of the model at step 5."""
    folder = TorchDistFolder(run.checkpoints / "iter_0000005")
    return {key: folder.read(key) for key in folder.specs}


def first_moments(run):
    """Parameter -> Adam's mean gradient at step 5."""
    folder, prefix = run.checkpoints / "iter_0000005", "optimizer.state.exp_avg."
    index = FileSystemReader(folder).read_metadata().state_dict_metadata
    moments = {key: torch.empty(entry.size) for key, entry in index.items() if key.startswith(prefix)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        torch.distributed.checkpoint.load(moments, checkpoint_id=folder, no_dist=True)
    return {key.removeprefix(prefix): tensor for key, tensor in moments.items()}
