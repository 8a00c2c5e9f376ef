"""Every shipped grid is legal and fits 80 GB by estimate, for all four stages; other numbers of GPUs are refused."""

from dataclasses import replace

import pytest

from megatron_medx.config.checks import check
from megatron_medx.config.memory import worst_rank
from megatron_medx.config.run import ParallelSection
from megatron_medx.errors import ConfigError
from megatron_medx.recipes import GRIDS_OF, STAGES, get_recipe, nearest_shipped
from megatron_medx.recipes.cluster import CLUSTER_SIZES
from megatron_medx.recipes.grids import shipped_grids

LIMIT = 72e9
"""Bytes on the worst rank: a tenth of 80 GB is left for the CUDA context, NCCL, fragments and uneven experts."""

FEWEST_GPUS = {"2b": 8, "4b": 8, "8b": 8, "32b": 16, "30b_a3b": 16, "235b_a22b": 128}
"""On half as many no grid fits, for 18 bytes a parameter and what a row needs beside them; 8 is the least shipped."""

SHIPPED = [(name, gpus) for name, grids in GRIDS_OF.items() for gpus in grids]


@pytest.mark.parametrize(("name", "gpus"), SHIPPED)
def test_a_shipped_grid_is_legal_and_fits(name, gpus):
    config = get_recipe(name, gpus)
    check(config)
    assert config.parallel.world_size == gpus
    assert sum(worst_rank(config).values()) < LIMIT


@pytest.mark.parametrize("size", CLUSTER_SIZES)
def test_grids_are_shipped_from_the_fewest_gpus_to_1024(size):
    numbers = list(shipped_grids(size))
    assert numbers[0] == FEWEST_GPUS[size] and numbers[-1] == 1024
    assert numbers == [numbers[0] * 2**power for power in range(len(numbers))]
    assert CLUSTER_SIZES[size].gpus in numbers


@pytest.mark.parametrize(("name", "gpus"), SHIPPED)
def test_what_talks_in_every_layer_stays_in_a_node(name, gpus):
    parallel = get_recipe(name, gpus).parallel
    assert parallel.tensor * parallel.context <= 8 and parallel.expert <= 8


@pytest.mark.parametrize("name", GRIDS_OF)
def test_a_grid_changes_only_how_fast_and_where_a_run_goes(name):
    plain = get_recipe(name)
    for gpus in GRIDS_OF[name]:
        config = get_recipe(name, gpus)
        recomputed = replace(config.training, recompute="none", recompute_vision="none")
        assert recomputed == replace(plain.training, recompute="none", recompute_vision="none")
        assert replace(config, parallel=plain.parallel, training=plain.training) == plain
    assert plain == get_recipe(name, plain.parallel.world_size)


def test_stages_of_a_size_share_its_grids():
    for size in CLUSTER_SIZES:
        grids = [GRIDS_OF[f"{stage}_{size}"] for stage in STAGES]
        assert all(grid == grids[0] for grid in grids)


def test_a_number_without_a_grid_names_the_nearest():
    with pytest.raises(ConfigError, match=r"pretrain_8b on 48 GPUs\nneeded: .*: 8, 16, .*\ndo:     take 32 or 64, or"):
        get_recipe("pretrain_8b", 48)
    with pytest.raises(ConfigError, match=r"take 128, or cut it yourself: parallel\.world_size=64"):
        get_recipe("sft_235b_a22b", 64)
    assert nearest_shipped("pretrain_8b", 5000) == [1024]


def test_demos_ship_no_grids():
    with pytest.raises(ConfigError, match=r"demo on 4 GPUs\n.*ships no grids\n.*parallel.world_size=4"):
        get_recipe("demo", 4)
    assert get_recipe("demo").parallel == ParallelSection(world_size=2, tensor=2)
