"""FP8 on paper: rows and widths that fit, layers in bf16, machines; what is refused and what to do instead."""

import itertools
import re

import pytest

from megatron_medx.config.checks import check
from megatron_medx.config.describe import describe
from megatron_medx.config.grid import GRID_RULES
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.precision import (
    FP8_RECIPES,
    Fp8Machine,
    gate_window,
    machine_problem,
    row_multiple_tokens,
)
from megatron_medx.data.rows import row_lengths
from megatron_medx.errors import ConfigError, ParallelismError
from megatron_medx.recipes import get_recipe

WIDE = (
    "precision.dtype=bf16", "parallel.world_size=8", "parallel.tensor=1", "data.seq_len_tokens=4096",
    "data.sample_align_tokens=8", "model.hidden_size=1024", "model.num_layers=8", "model.num_heads=16",
    "model.num_kv_heads=8", "model.head_dim=64", "model.mrope_section=16,8,8", "model.ffn_hidden_size=3072",
    "model.vision.hidden_size=1152", "model.vision.num_heads=16", "model.vision.ffn_hidden_size=4304",
    "training.global_batch_rows=8", "optimizer.warmup_tokens=0",
)  # fmt: skip
"""The demo with widths as those of Qwen3-VL: the tower's inner one is a multiple of 16 and not of 128."""


def run_of(*words):
    return apply_overrides(get_recipe("demo"), [*WIDE, *words])


@pytest.mark.parametrize("fp8", FP8_RECIPES)
def test_every_recipe_is_accepted(fp8):
    check(run_of(f"precision.fp8={fp8}"))


@pytest.mark.parametrize(
    ("words", "found", "do"),
    [
        (("fp8=delayed", "dtype=fp32"), r"fp8 delayed, precision\.dtype fp32", r"set precision\.dtype=bf16"),
        (("gate_steps=5",), r"gate_steps 5, precision\.fp8 none", r"set precision\.gate_steps=0"),
        (("fp8_vision=true",), r"fp8_vision true, precision\.fp8 none", r"set precision\.fp8_vision=false"),
        (("fp8=delayed", "bf16_last_layers=1"), "fp8 delayed, .*bf16_last_layers 1", r"fp8=tensorwise"),
        (("fp8=tensorwise", "bf16_first_layers=5", "bf16_last_layers=3"), r"5 \+ .* 3, model\.num_layers 8", "lower"),
        (("fp8=tensorwise", "gate_steps=5000"), r"gate_steps 5000, training\.steps", "gate_steps="),
        (("fp8=blockwise", "fp8_vision=true"), r"vision\.ffn_hidden_size 4304", "fp8_vision=false, or .*=tensorwise"),
    ],
)
def test_what_no_grid_makes_right_is_refused(words, found, do):
    with pytest.raises(ConfigError) as refused:
        check(run_of(*(f"precision.{word}" for word in words)))
    assert not isinstance(refused.value, ParallelismError)
    message = str(refused.value)
    assert re.search(found, message) and re.search(do, message), message


def test_bf16_layers_and_no_gate_ask_for_nothing_without_fp8():
    check(run_of("precision.bf16_first_layers=1", "precision.bf16_last_layers=2"))


def test_the_tower_may_compute_in_fp8():
    check(run_of("precision.fp8=tensorwise", "precision.fp8_vision=true"))


@pytest.mark.parametrize(
    ("width", "refused"),
    [("hidden_size=1032", "hidden_size 1032"), ("ffn_hidden_size=3080", "ffn_hidden_size 3080")],
)
def test_widths_come_in_groups(width, refused):
    check(run_of(f"model.{width}"))
    with pytest.raises(ConfigError, match=rf"model\.{refused}, .*\n.*a multiple of 16"):
        check(run_of(f"model.{width}", "precision.fp8=tensorwise"))


def test_the_width_of_experts_counts_and_the_unused_one_does_not():
    experts = ("num_experts=8", "experts_per_token=2", "ffn_hidden_size=3080", "tie_embeddings=false")
    words = [*(f"model.{word}" for word in experts), "precision.fp8=blockwise"]
    check(run_of(*words, "model.expert_ffn_hidden_size=768"))
    with pytest.raises(ConfigError, match=r"expert_ffn_hidden_size 776"):
        check(run_of(*words, "model.expert_ffn_hidden_size=776"))


def test_a_row_that_fits_no_rank_names_the_nearest_lengths():
    row = ("data.seq_len_tokens=4040", "data.sample_align_tokens=40")
    with pytest.raises(ConfigError, match=r"seq_len_tokens 4040, .*\n.*a multiple of 16.*\n.*=4000 or 4080") as refused:
        check(run_of(*row, "precision.fp8=tensorwise"))
    assert not isinstance(refused.value, ParallelismError)
    for length in (4000, 4080):
        check(run_of(*row, f"data.seq_len_tokens={length}", "precision.fp8=tensorwise"))


def test_a_row_that_another_recipe_takes_says_so():
    with pytest.raises(ConfigError, match=r"or precision\.fp8=tensorwise"):
        check(run_of("data.seq_len_tokens=4112", "data.sample_align_tokens=1", "precision.fp8=blockwise"))


@pytest.mark.parametrize(
    ("fp8", "grid", "row", "multiple"),
    [
        ("tensorwise", "tensor=2 context=2", 4128, 64),
        ("delayed", "tensor=4 context=1", 4128, 64),
        ("blockwise", "tensor=2 context=4", 4608, 1024),
    ],
)
def test_the_part_of_a_rank_has_to_fit(fp8, grid, row, multiple):
    """Rows that one rank takes, cut by tensor x context; the nearest grid is named, and is legal."""
    words = [f"precision.fp8={fp8}", f"data.seq_len_tokens={row}", *(f"parallel.{word}" for word in grid.split())]
    check(run_of(*words[:2]))
    with pytest.raises(ParallelismError, match=rf"a multiple of {multiple} = ") as refused:
        check(run_of(*words))
    do = str(refused.value).split("nearest legal grid: ")[1].split()
    check(run_of(*words, *do))


def test_tensor_ranks_get_widths_that_fit():
    words = ("precision.fp8=blockwise", "parallel.tensor=8", "model.ffn_hidden_size=9728")
    with pytest.raises(
        ParallelismError, match=r"9728 / parallel\.tensor 8 = 1216(.|\n)*tensorwise(.|\n)*nearest legal"
    ):
        check(run_of(*words))
    check(run_of(*words, "precision.fp8=tensorwise"))
    check(run_of(*words, "parallel.tensor=4"))


def test_the_first_layers_in_bf16_are_those_of_one_stage():
    words = ("precision.fp8=tensorwise", "precision.bf16_first_layers=3", "parallel.pipeline=4")
    with pytest.raises(ParallelismError, match=r"bf16_first_layers 3, .*pipeline 4(.|\n)*at most 2 = 8 / 4"):
        check(run_of(*words))
    check(run_of(*words, "parallel.pipeline=2"))


def test_rules_of_the_grid_only_add_up():
    """What `nearest_grid` counts on: a grid that is illegal with one axis stays so with more."""
    legal = {}
    for tensor, context in itertools.product((1, 2, 4, 8), repeat=2):
        grid = (f"parallel.tensor={tensor}", f"parallel.context={context}", "parallel.world_size=64")
        config = run_of("precision.fp8=blockwise", "data.seq_len_tokens=2048", *grid)
        legal[tensor, context] = all(next(rule(config), None) is None for _, rule in GRID_RULES[-3:])
    assert legal[4, 4] and not legal[8, 4]
    assert all(legal[1, c] and legal[t, 1] for (t, c), fits in legal.items() if fits)


def test_unpacked_rows_end_where_every_rank_has_a_whole_part():
    grid = ("parallel.tensor=2", "parallel.context=2", "data.packing=false")
    assert row_lengths(run_of(*grid))["align_tokens"] == 8
    assert row_lengths(run_of(*grid, "precision.fp8=tensorwise"))["align_tokens"] == 64
    blockwise = run_of(*grid, "precision.fp8=blockwise")
    assert row_lengths(blockwise)["align_tokens"] == row_multiple_tokens(blockwise) == 512


H200 = Fp8Machine("2.20.2", (9, 0), "13.0")


@pytest.mark.parametrize(
    ("fp8", "machine", "found"),
    [
        *((fp8, H200, None) for fp8 in FP8_RECIPES),
        ("tensorwise", Fp8Machine(None, None, None), "not installed, no GPU, torch built without CUDA"),
        ("tensorwise", Fp8Machine("2.20.2", (8, 0), "13.0"), "compute capability 8.0"),
        ("delayed", Fp8Machine("2.20.2+local", (8, 9), "12.4"), None),
        ("blockwise", Fp8Machine("2.20.2", (8, 9), "13.0"), "compute capability 8.9"),
        ("blockwise", Fp8Machine("2.20.2", (9, 0), "12.8"), "CUDA 12.8"),
        ("tensorwise", Fp8Machine("1.13", (9, 0), "12.8"), "Transformer Engine 1.13"),
    ],
)
def test_a_machine_is_judged_by_engine_gpu_and_cuda(fp8, machine, found):
    problem = machine_problem(fp8, machine)
    assert (problem is None) == (found is None)
    if problem:
        assert found in problem.found and "precision.fp8=none" in problem.do and "or newer" in problem.needed


@pytest.mark.parametrize(("steps", "window"), [(1, 1), (9, 1), (10, 1), (11, 2), (200, 20)])
def test_a_gate_averages_a_tenth_of_its_steps(steps, window):
    assert gate_window(steps) == window


def test_a_run_in_fp8_is_described():
    words = ("fp8=tensorwise", "bf16_first_layers=1", "bf16_last_layers=2", "gate_steps=20")
    lines = describe(run_of(*(f"precision.{word}" for word in words), "parallel.tensor=2", "training.steps=100"))
    (fp8,) = (line for line in lines if line.startswith("fp8 "))
    assert "tensorwise scaling in 5 of 8 decoder layers, the first 1 and the last 2 in bf16; tower in bf16" in fp8
    assert "4,096 / (tensor 2 x context 1) = 2,048 tokens of a row on a rank, a multiple of 16" in fp8
    (gate,) = (line for line in lines if line.startswith("gate "))
    assert "20 steps in FP8 and 20 in bf16" in gate and "the last 2 differ by more than 0.500%" in gate


def test_a_run_in_bf16_says_nothing_of_fp8():
    assert not [line for line in describe(run_of()) if line.startswith(("fp8", "gate"))]
