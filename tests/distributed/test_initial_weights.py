"""Initial weights are a function of (seed, parameter name): a grid changes none of them, a seed all.

Read from checkpoints of runs that train the merger alone, so all else is as it was drawn.
"""

import pytest
import torch
from grids import ONE, ONE_STEP, SCENARIOS, SMALL

from megatron_medx.checkpoint.megatron_files.torch_dist import TorchDistFolder


@pytest.fixture(scope="module", autouse=True)
def other_seed(runs):
    """One step of the same with another seed."""
    words = (*SMALL, *SCENARIOS["merger alone"], "run.seed=99", *ONE_STEP)
    return runs.submit(lambda queue: queue.train("other_seed", *words))


@pytest.fixture(scope="module")
def one_process(runs):
    """Weights drawn on one process."""
    return frozen_weights(runs.scenario("merger alone", ONE).result().ok(), 5)


@pytest.mark.parametrize(
    ("scenario", "grid", "step"),
    [("merger alone", "tp2", 5), ("merger alone", "pp2", 5), ("merger alone, experts", "tp2 pp2 vpp2 dp2 ep4", 1)],
)
def test_every_grid_draws_the_same_bits(scenario, grid, step, runs):
    expected, drawn = (frozen_weights(runs.scenario(scenario, which).result().ok(), step) for which in (ONE, grid))
    assert drawn.keys() == expected.keys() and len(drawn) > 40
    differing = [key for key, tensor in drawn.items() if not torch.equal(tensor, expected[key])]
    assert not differing, differing


def test_another_seed_draws_other_weights(other_seed, one_process):
    other = frozen_weights(other_seed.result().ok(), 1)
    matrices = [key for key, tensor in one_process.items() if tensor.dim() > 1]
    assert len(matrices) > 20
    for key in matrices:
        correlation = torch.corrcoef(torch.stack([one_process[key].flatten(), other[key].flatten()]))[0, 1].item()
        assert abs(correlation) < 0.2, f"{key}: correlation {correlation:.3f}"


def test_no_two_matrices_of_a_run_are_alike(one_process):
    """A generator that forgot the name would draw equal layers."""
    seen = {}
    for key, tensor in one_process.items():
        if tensor.dim() > 1:
            twin = seen.setdefault(tuple(tensor.flatten()[:8].tolist()), key)
            assert twin == key, f"{key} starts as {twin}"


def frozen_weights(run, step):
    """Checkpoint key -> tensor, of vision tower and decoder."""
    folder = TorchDistFolder(run.checkpoints / f"iter_{step:07d}")
    return {key: folder.read(key) for key in folder.specs if "merger" not in key}
