"""Every rule of the grid names its numbers, and the grid that an error names instead is legal and near."""

import math
import random
import re
from dataclasses import replace
from itertools import product

import pytest

from megatron_medx.config.checks import check
from megatron_medx.config.grid import GRID_RULES, is_legal, stage_layers
from megatron_medx.config.nearest_grid import _distance, nearest_grid
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.run import ParallelSection, RunConfig
from megatron_medx.errors import ParallelismError
from megatron_medx.recipes import get_recipe
from megatron_medx.recipes.sizes import qwen3_vl_8b

PLAIN = {"tensor": 1, "world_size": 1}

FP8 = ("precision.dtype=bf16", "precision.fp8=tensorwise")


def run(*overrides: str, recipe: str = "demo", **axes: int) -> RunConfig:
    """The demo with these axes: 4 layers, 2 DeepStack levels, 2 rows of 512 tokens, samples aligned to 4."""
    words = [f"parallel.{axis}={size}" for axis, size in (PLAIN | axes).items()]
    return apply_overrides(get_recipe(recipe), [*words, *overrides])


def refused(config: RunConfig) -> ParallelismError:
    with pytest.raises(ParallelismError) as caught:
        check(config)
    return caught.value


ONE_PROBLEM = {
    "key/value heads": (run(tensor=4, world_size=4), "model.num_kv_heads 2, parallel.tensor 4"),
    "MLP": (run("model.ffn_hidden_size=481", tensor=2, world_size=2), "model.ffn_hidden_size 481, parallel.tensor 2"),
    "vocabulary": (run("model.vocab_size=4097", tensor=2, world_size=2), "model.vocab_size 4097, parallel.tensor 2"),
    "ranks": (run(world_size=3, pipeline=2), "parallel.world_size 3(.|\n)*start 4 ranks with --nproc 4"),
    "rows": (
        run(world_size=3),
        r"global_batch_rows 2, data-parallel replicas 3 \(world 3(.|\n)*training.global_batch_rows=3",
    ),
    "tokens": (
        run("data.seq_len_tokens=511", "data.sample_align_tokens=1", world_size=2, tensor=2),
        "data.seq_len_tokens 511, parallel.tensor 2 x parallel.context 1 = 2(.|\n)*data.seq_len_tokens=512",
    ),
    "alignment": (
        run("data.seq_len_tokens=510", "data.sample_align_tokens=6", world_size=2, context=2),
        "data.sample_align_tokens 6, parallel.context 2(.|\n)*a multiple of 4(.|\n)*"
        "set data.sample_align_tokens=12 data.seq_len_tokens=516, or",
    ),
    "a pack too short": (
        run(
            "data.seq_len_tokens=8", "data.sample_align_tokens=8", "optimizer.warmup_tokens=0", world_size=8, context=8
        ),
        "data.sample_align_tokens 8, parallel.context 8(.|\n)*cut into 16 equal(.|\n)*"
        "set data.sample_align_tokens=16 data.seq_len_tokens=16, or",
    ),
    "layers": (
        run(world_size=3, pipeline=3),
        "model.num_layers 4, parallel.pipeline 3\n(.|\n)*equally many of 4 layers(.|\n)*first_stage_layers=2, or",
    ),
    "no layers": (
        run(world_size=8, pipeline=8),
        "model.num_layers 4, parallel.pipeline 8\n(.|\n)*at least 8 layers for the 8 stages, not 4",
    ),
    "uneven layers": (
        run("model.num_layers=10", world_size=4, pipeline=4, first_stage_layers=2),
        "parallel.first_stage_layers 2\n(.|\n)*equally many of 8 layers on the 3 other(.|\n)*first_stage_layers=4, or",
    ),
    "no layers left": (
        run(world_size=3, pipeline=3, first_stage_layers=2, last_stage_layers=2),
        "at least 1 layers for the 1 other stages, not 0",
    ),
    "first and last are all": (
        run(world_size=2, pipeline=2, first_stage_layers=2, last_stage_layers=1),
        "first_stage_layers 2, parallel.last_stage_layers 1\n(.|\n)*a sum of 4 layers(.|\n)*first_stage_layers=3, or",
    ),
    "uneven single stage": (
        run(last_stage_layers=2),
        "parallel.pipeline 1, parallel.last_stage_layers 2\n(.|\n)*all 4 layers(.|\n)*last_stage_layers=none",
    ),
    "chunks of one stage": (run(virtual_pipeline=2), "virtual_pipeline 2, parallel.pipeline 1(.|\n)*at least 2"),
    "chunks": (
        run("model.num_layers=12", world_size=2, pipeline=2, virtual_pipeline=4),
        r"stages of 6 \+ 6 layers, parallel.virtual_pipeline 4(.|\n)*set parallel.virtual_pipeline=3",
    ),
    "uneven chunks": (
        run("model.num_layers=9", world_size=2, pipeline=2, first_stage_layers=4, virtual_pipeline=2),
        r"stages of 4 \+ 5 layers, parallel.virtual_pipeline 2(.|\n)*set parallel.virtual_pipeline=1",
    ),
    "rows of chunks": (
        run("model.num_layers=8", "training.global_batch_rows=6", world_size=4, pipeline=2, virtual_pipeline=2),
        r"global_batch_rows 6 / data 2 = 3 rows for a replica(.|\n)*pipeline 2: (.|\n)*global_batch_rows=8, or",
    ),
    "DeepStack": (
        run(world_size=4, pipeline=4),
        "1 decoder layers on the first pipeline stage(.|\n)*2 model.vision.deepstack_layers(.|\n)*at least 2",
    ),
    "DeepStack in chunks": (
        run(world_size=2, pipeline=2, virtual_pipeline=2),
        "1 decoder layers in each of 2 chunks on the first pipeline stage(.|\n)*at least 2",
    ),
    "experts of a dense model": (run(world_size=2, expert=2), "parallel.expert 2 on a dense model"),
    "experts": (
        run("training.global_batch_rows=3", recipe="demo_moe", world_size=3, expert=3),
        "model.num_experts 8, parallel.expert 3(.|\n)*a divisor of 8",
    ),
    "ranks of experts": (
        run(recipe="demo_moe", world_size=4, pipeline=2, expert=4),
        r"parallel.expert 4, 2 ranks of a stage \(tensor 1 x context 1 x data 2\)(.|\n)*a divisor of 2",
    ),
    "rows in FP8": (
        run(*FP8, "data.seq_len_tokens=528", world_size=2, tensor=2),
        r"seq_len_tokens 528, precision.fp8 tensorwise, parallel.tensor 2 x parallel.context 1\n(.|\n)*"
        r"a multiple of 32 = 16 x 2 x 1(.|\n)*set data.seq_len_tokens=512 or 544, or",
    ),
    "widths in FP8": (
        run(*FP8, "model.ffn_hidden_size=496", world_size=2, tensor=2),
        "ffn_hidden_size 496 / parallel.tensor 2 = 248, precision.fp8 tensorwise\n(.|\n)*a multiple of 16 on each",
    ),
    "layers in bf16 beside FP8": (
        run(*FP8, "precision.bf16_first_layers=3", world_size=2, pipeline=2),
        "bf16_first_layers 3, model.num_layers 4, parallel.pipeline 2\n(.|\n)*at most 2 = 4 / 2",
    ),
}
"""Rule -> a grid that breaks it alone, and what the message says."""


@pytest.mark.parametrize("name", ONE_PROBLEM)
def test_a_grid_that_breaks_one_rule_is_refused_with_its_numbers_and_a_legal_grid(name):
    config, said = ONE_PROBLEM[name]
    error = refused(config)
    assert re.search(said, str(error)), str(error)
    assert "problems" not in error.found, "one fault, one problem"
    check(named_grid(config, error))


def named_grid(config: RunConfig, error: ParallelismError) -> RunConfig:
    """The configuration with the overrides at the end of the message pasted behind its own."""
    text = re.search(r"(?:nearest legal grid|smallest change): ([^;]*)$", error.do)
    assert text, error.do
    return apply_overrides(config, text.group(1).split())


def test_query_heads_are_named_beside_the_key_value_heads_that_they_are_a_multiple_of():
    found = refused(run("model.num_heads=6", "model.num_kv_heads=6", world_size=4, tensor=4)).found
    assert "2 problems" in found and "model.num_heads 6, parallel.tensor 4" in found


def test_every_rule_is_broken_by_an_example():
    broken = [
        {index for index, (_, rule) in enumerate(GRID_RULES) if next(rule(config), None)}
        for config, _ in [*ONE_PROBLEM.values(), (run("model.num_heads=6", world_size=4, tensor=4), "")]
    ]
    assert set.union(*broken) == set(range(len(GRID_RULES)))


@pytest.mark.parametrize(
    ("axes", "layers"),
    [
        ({}, [12]),
        ({"pipeline": 4}, [3, 3, 3, 3]),
        ({"pipeline": 4, "first_stage_layers": 3}, [3, 3, 3, 3]),
        ({"pipeline": 3, "first_stage_layers": 2}, [2, 5, 5]),
        ({"pipeline": 4, "last_stage_layers": 6}, [2, 2, 2, 6]),
        ({"pipeline": 4, "first_stage_layers": 1, "last_stage_layers": 1}, [1, 5, 5, 1]),
        ({"pipeline": 2, "first_stage_layers": 5, "last_stage_layers": 7}, [5, 7]),
    ],
)
def test_layers_of_stages(axes, layers):
    assert stage_layers(run("model.num_layers=12", **axes)) == layers


@pytest.mark.parametrize(
    "config",
    [
        run(world_size=8, tensor=2, context=2, pipeline=2),
        run("model.num_layers=8", world_size=4, tensor=2, pipeline=2, virtual_pipeline=2),
        run(world_size=2, pipeline=2, first_stage_layers=3),
        run("data.sample_align_tokens=1", world_size=2, pipeline=2),
        run(recipe="demo_moe", world_size=8, tensor=2, context=2, expert=8),
        run("model.ffn_hidden_size=481", recipe="demo_moe", world_size=2, tensor=2),
        run("data.packing=false", world_size=2, context=2),
    ],
)
def test_legal_grids_pass(config):
    check(config)


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (run(world_size=8, tensor=4), "tensor=2 pipeline=1 context=2"),
        (run("data.sample_align_tokens=2", world_size=2, context=2), "tensor=1 pipeline=1 context=1"),
        (run(world_size=6, tensor=2, pipeline=3), "tensor=2 pipeline=3 context=1 first_stage_layers=2"),
        (
            run("model.num_layers=8", world_size=4, pipeline=2, virtual_pipeline=3, tensor=2),
            "tensor=2 pipeline=2 context=1 virtual_pipeline=2",
        ),
        (run(recipe="demo_moe", world_size=2, expert=4), "tensor=1 pipeline=1 context=1 expert=2"),
        (run(first_stage_layers=2), "tensor=1 pipeline=1 context=1 first_stage_layers=none"),
    ],
)
def test_the_nearest_grid(config, grid):
    words = " ".join(f"parallel.{word}" for word in grid.split())
    assert refused(config).do.endswith(f"; nearest legal grid: {words}")


def test_where_no_grid_is_legal_the_nearest_number_of_rows_is_named():
    error = refused(run(world_size=7))
    assert error.do.endswith(
        "no grid of 7 ranks is legal with 2 rows a step; smallest change: "
        "training.global_batch_rows=7 parallel.tensor=1 parallel.pipeline=1 parallel.context=1"
    )


def test_several_problems_end_with_one_grid():
    config = run(world_size=2, virtual_pipeline=2, expert=2)
    error = refused(config)
    assert error.found.startswith("2 problems")
    assert error.do.startswith("mend each, then start again; nearest legal grid: ")
    check(named_grid(config, error))


def illegal_grids(count: int):
    """Grids at random, small and large, dense and mixture of experts, of which no rule approves."""
    draw = random.Random(3)
    bases = [get_recipe("demo"), get_recipe("demo_moe"), get_recipe("pretrain_8b")]
    while count:
        config = replace(draw.choice(bases))
        config.parallel = ParallelSection(
            world_size=draw.choice((1, 2, 3, 4, 6, 7, 8, 12, 16, 24, 64, 96, 1000, 1024)),
            tensor=draw.choice((1, 1, 2, 3, 4, 8, 16)),
            pipeline=draw.choice((1, 2, 3, 4, 5, 8)),
            virtual_pipeline=draw.choice((1, 1, 1, 2, 3, 4)),
            context=draw.choice((1, 1, 2, 3, 4, 8)),
            expert=draw.choice((1, 1, 1, 2, 3, 8)),
            first_stage_layers=draw.choice((None, None, 1, 2, 5)),
            last_stage_layers=draw.choice((None, None, 1, 3)),
        )
        config.optimizer = replace(config.optimizer, warmup_tokens=0)
        config.training = replace(config.training, global_batch_rows=draw.choice((1, 2, 6, 16, 500, 512)))
        config.model = replace(config.model, num_layers=draw.choice((2, 4, 6, 12, 36)))
        if len(config.model.vision.deepstack_layers) <= config.model.num_layers and not is_legal(config):
            count -= 1
            yield config


def test_the_named_grid_always_passes():
    for config in illegal_grids(300):
        check(named_grid(config, refused(config)))


def test_no_legal_grid_with_the_asked_or_an_even_split_is_nearer():
    for config in illegal_grids(60):
        asked = config.parallel
        if asked.world_size > 12:
            continue
        error = refused(config)
        distances = [distance(grid, asked) for grid in all_grids(asked) if is_legal(replace(config, parallel=grid))]
        if "smallest change" in error.do:
            assert not distances
        elif distances:
            assert distance(named_grid(config, error).parallel, asked) <= min(distances) + 1e-9


def all_grids(asked: ParallelSection):
    """By brute force: every size of every axis, whether or not it divides anything."""
    sizes = range(1, asked.world_size + 1)
    splits = {(asked.first_stage_layers, asked.last_stage_layers), (None, None)}
    for tensor, pipeline, context in product(sizes, sizes, sizes):
        if asked.world_size % (tensor * pipeline * context) == 0:
            for virtual, expert, split in product(range(1, 8), sizes, splits):
                yield ParallelSection(
                    world_size=asked.world_size,
                    tensor=tensor,
                    pipeline=pipeline,
                    context=context,
                    virtual_pipeline=virtual,
                    expert=expert,
                    first_stage_layers=split[0],
                    last_stage_layers=split[1],
                )


def distance(grid: ParallelSection, asked: ParallelSection) -> float:
    inner = ((grid.virtual_pipeline, asked.virtual_pipeline), (grid.expert, asked.expert))
    return _distance(grid, asked) + sum(abs(math.log2(new / old)) for new, old in inner)


def test_a_thousand_ranks_are_searched_at_once():
    """Counted, not timed: 50 ms are about 2,000 grids."""
    config = replace(get_recipe("pretrain_8b"), model=qwen3_vl_8b())
    config.parallel = ParallelSection(world_size=1024, tensor=16, pipeline=16, virtual_pipeline=4, context=8)
    judged = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatron_medx.config.nearest_grid.is_legal", lambda config: judged.append(0) or is_legal(config))
        assert nearest_grid(config).startswith("nearest legal grid: ")
    assert len(judged) < 1000
