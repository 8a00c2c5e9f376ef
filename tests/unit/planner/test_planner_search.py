"""Better grids: legal, within memory, faster by the same prediction, and words to paste that lead to them."""

from dataclasses import replace

import pytest

from megatron_medx.config.checks import check
from megatron_medx.config.grid import is_legal, stage_layers
from megatron_medx.config.memory import worst_rank
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.run import ParallelSection
from megatron_medx.planner import grids
from megatron_medx.planner.fitting import fits, memory_by_stage
from megatron_medx.planner.grids import balanced_split, legal_grids, overrides, recomputations, with_grid
from megatron_medx.planner.hardware import H100
from megatron_medx.planner.refusal import memory_problem, no_grid_problem
from megatron_medx.planner.search import best_grids, fewest_gpus
from megatron_medx.planner.step_time import predict
from megatron_medx.planner.workload import Assumption, assumed_workload
from megatron_medx.recipes import get_recipe


def on(name, gpus, **axes):
    config = get_recipe(name)
    config.parallel = ParallelSection(world_size=gpus, **axes)
    config.training = replace(config.training, recompute="none", recompute_vision="none")
    return config


def test_grids_are_legal_and_none_comes_twice():
    config = on("pretrain_30b_a3b", 64)
    found = list(legal_grids(config))
    assert all(is_legal(replace(config, parallel=grid)) for grid in found)
    assert len(found) == len({repr(grid) for grid in found}) > 50
    assert {grid.expert for grid in found} >= {1, 8, 64} and {grid.pipeline for grid in found} >= {1, 2, 4}
    assert any(grid.virtual_pipeline > 1 for grid in found)


def test_the_tower_gets_room_on_the_first_stage():
    assert balanced_split(94, 8, 1, 7, 2) == {"first_stage_layers": 6, "last_stage_layers": 10}
    assert balanced_split(36, 4, 1, 0, 0) == {}
    assert balanced_split(36, 2, 1, 6, 2) == {"first_stage_layers": 16, "last_stage_layers": 20}
    assert balanced_split(36, 2, 5, 0, 0) is None  # 36 layers make no five equal chunks
    assert balanced_split(94, 8, 1, 0, 90) is None  # nothing would be left for the last stage
    split = balanced_split(48, 4, 2, 5, 1)
    config = on("pretrain_30b_a3b", 8, pipeline=4, virtual_pipeline=2, **split)
    assert sum(stage_layers(config)) == 48 and all(layers % 2 == 0 for layers in stage_layers(config))


def test_what_is_found_fits_is_legal_and_is_ordered_by_time():
    config = on("pretrain_8b", 64, tensor=8)
    workload = assumed_workload(config, Assumption())
    found = best_grids(config, workload, H100)
    times = [entry.prediction.step_s for entry in found]
    assert times == sorted(times) and times[0] < predict(config, workload, H100).step_s
    for entry in found:
        check(entry.config)
        assert sum(worst_rank(entry.config).values()) <= 72e9
        assert entry.config.training.global_batch_rows == config.training.global_batch_rows


def test_overrides_lead_from_the_run_asked_for_to_the_one_found():
    config = on("pretrain_30b_a3b", 64, tensor=8)
    for entry in best_grids(config, assumed_workload(config, Assumption()), H100):
        assert apply_overrides(config, overrides(entry.config, config).split()) == entry.config
    assert overrides(config, config) == "no change"


def test_overrides_also_hold_on_the_recipes_own_grid(monkeypatch):
    """Where the recipe's own grid has stages, one for another number of GPUs that has none must say so."""
    own = on("pretrain_32b", 256, tensor=2, pipeline=4, first_stage_layers=14, last_stage_layers=16)
    monkeypatch.setattr(grids, "get_recipe", lambda name: own)
    asked, found = on("pretrain_32b", 64, tensor=4), on("pretrain_32b", 64, tensor=8)
    words = overrides(found, asked).split()
    again = apply_overrides(own, [*words, "parallel.world_size=64"])
    assert (again.parallel, again.training) == (found.parallel, found.training)


def test_two_stages_are_enough_to_look_at():
    """Of stages with equal layers the second holds most; the first has the tower, the last the logits."""
    for axes in ({"pipeline": 8, "first_stage_layers": 2, "last_stage_layers": 4}, {"pipeline": 4}, {}):
        config = on("pretrain_8b", 64, **axes)
        worst = max(sum(kinds.values()) for kinds in memory_by_stage(config))
        assert fits(config, worst) and not fits(config, worst - 1)


def test_frozen_towers_are_not_recomputed_in_turn():
    config = on("pretrain_8b", 64)
    assert len(recomputations(config)) == 3
    config.training = replace(config.training, freeze=("vision",))
    assert recomputations(config) == (("full", "none"), ("none", "none"))


def test_the_fewest_gpus():
    config = get_recipe("pretrain_8b")
    fewest = fewest_gpus(config, H100)
    assert fits(fewest, 72e9)
    gpus = fewest.parallel.world_size
    half = with_grid(config, ParallelSection(world_size=gpus // 2))
    assert not any(fits(with_grid(half, grid, ("full", "full")), 72e9) for grid in legal_grids(half))
    assert fewest_gpus(config, replace(H100, memory_bytes=9e9)) is None


def test_a_grid_beyond_memory_is_told_with_numbers_and_a_grid_that_fits():
    config = on("pretrain_32b", 64)
    problem = memory_problem(config)
    needed = sum(worst_rank(config).values()) / 1e9
    assert problem.found.startswith(f"{needed:.1f} GB estimated on the worst rank of 64 GPUs = weights")
    assert problem.needed == "at most 80 GB, the memory of a GPU" and problem.of_the_grid
    words = problem.do.removeprefix("set ").partition(":")[0].split()
    mended = apply_overrides(config, words)
    check(mended)
    assert memory_problem(mended) is None


def test_what_fits_has_no_problem_and_larger_gpus_take_more():
    config = on("pretrain_8b", 64, tensor=2)
    worst = sum(worst_rank(config).values())
    assert memory_problem(config, worst) is None
    assert memory_problem(config, worst - 1) is not None


def test_too_few_gpus_are_told_how_many_would_do():
    config = on("pretrain_32b", 2)
    problem = memory_problem(config)
    gpus = fewest_gpus(config, H100).parallel.world_size
    assert problem.do.startswith(
        f"take {gpus} GPUs, the fewest (of powers of two) that a legal grid fits on: parallel."
    )
    same = no_grid_problem(config, assumed_workload(config, Assumption()), H100)
    assert same.found == "2 GPUs, 512 rows a step: no legal grid of them fits" and same.do == problem.do


def test_a_number_of_gpus_that_divides_no_batch_is_told_another():
    config = on("pretrain_8b", 17)  # divides neither rows nor heads, and is more stages than are thought of
    assert list(legal_grids(config)) == []
    problem = no_grid_problem(config, assumed_workload(config, Assumption()), H100)
    gpus = fewest_gpus(config, H100).parallel.world_size
    assert gpus < 17 and problem.do.startswith(f"take another number of GPUs: {gpus} would do with ")
    assert problem.do.endswith("or change training.global_batch_rows")


def test_nothing_helps_where_one_row_is_too_much():
    config = on("pretrain_32b", 2)
    with_little = memory_problem(config, 9e9)
    assert with_little.do == "lower data.seq_len_tokens or data.max_pixels, or take a smaller model"


@pytest.mark.parametrize("name", ["demo", "align_8b", "sft_30b_a3b"])
def test_every_stage_can_be_searched(name):
    config = get_recipe(name)
    assert best_grids(config, assumed_workload(config, Assumption()), H100)
