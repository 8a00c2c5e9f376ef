"""The demo's recipes on the demo's data: five steps on a grid are those of one process."""

import pytest
from agreement import LOSS_TOLERANCE, NORM_TOLERANCE, assert_same_losses
from grids import ONE

GRIDS = {"demo": "tp2 cp2 pp2", "demo_moe": "dp2 ep2"}
"""Recipe -> grid."""


def train(runs, demo, recipe, grid):
    """Five steps."""
    title = f"recipe {recipe} on {grid}"
    words = (f"data.path={demo}", "training.steps=5")
    return runs.once(title, lambda runs: runs.train(title, *words, config=recipe, grid=grid))


@pytest.mark.parametrize("recipe", GRIDS)
def test_a_recipe_is_the_same_run_on_its_grid(recipe, runs, demo):
    started = [train(runs, demo, recipe, grid) for grid in (ONE, GRIDS[recipe])]
    one, run = (future.result().ok() for future in started)
    assert_same_losses({ONE: one.column("loss"), GRIDS[recipe]: run.column("loss")}, LOSS_TOLERANCE)
    for key in ("step", "tokens", "images", "lr"):
        assert run.column(key) == one.column(key), key
    assert run.column("grad_norm") == pytest.approx(one.column("grad_norm"), rel=NORM_TOLERANCE)
