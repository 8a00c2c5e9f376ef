"""FP8: what each scaling recipe of Transformer Engine needs of rows, widths, layers and machine.

A matrix product in FP8 takes tokens and widths in whole groups. How many tokens of a row a rank holds depends on the
grid: seq_len_tokens / (tensor x context), before sequence parallelism gathers them, for Transformer Engine looks at
them then. What packing and grid cannot give is refused here; what only the machine can tell, its GPU and libraries, is
judged by `machine_problem`, which the ranks ask before training starts and `medx doctor` at any time.

Padding that alignment asks for is never glued to a sample: it is a segment of its own behind the last one
(data/collate.py), so no token of a sample attends to it. Glued to the last sample, training was seen to diverge
(NVIDIA/TransformerEngine issue 2892).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_medx.config.problems import Problem
from megatron_medx.config.run import RunConfig


@dataclass(frozen=True, slots=True)
class Fp8Recipe:
    """What one of `precision.fp8` is to Megatron, and what it needs."""

    number_format: str
    """`hybrid`: 4-bit exponents forward, 5-bit ones for gradients; `e4m3`: 4-bit ones for both."""
    multiple: int
    """Tokens of a rank and widths come in multiples of it."""
    engine: tuple[int, int]
    """Oldest Transformer Engine for which Megatron offers it."""
    capability: tuple[int, int]
    """Lowest compute capability of the GPU."""
    cuda: tuple[int, int]
    """Oldest CUDA that torch may be built for."""


FP8_RECIPES: dict[str, Fp8Recipe] = {
    "delayed": Fp8Recipe("hybrid", 16, (1, 11), (8, 9), (12, 1)),
    "tensorwise": Fp8Recipe("hybrid", 16, (2, 2), (8, 9), (12, 1)),
    "blockwise": Fp8Recipe("e4m3", 128, (2, 3), (9, 0), (12, 9)),
}
"""Key of `precision.fp8` -> its needs.

Read in transformer_engine 2.20: formats are its defaults (common/recipe/__init__.py). 16: cuBLAS wants leading
dimensions of 16 bytes, and the product for a weight's gradient has the tokens there (common/gemm/cublaslt_gemm.cu).
128: the blocks of `Float8BlockQuantizer`, of which ranks exchange whole ones alone (`is_quantizable`). GPU and CUDA:
pytorch/quantization.py. Versions of the engine: `get_fp8_recipe` in fp8_utils.py of Megatron-Core 0.19.2, of `delayed`
what its TransformerConfig asks for experts.
"""


@dataclass(frozen=True, slots=True)
class Fp8Machine:
    """What a machine has of what FP8 needs."""

    engine: str | None
    """Version of Transformer Engine; None where it cannot be imported."""
    capability: tuple[int, int] | None
    """Compute capability of the GPU; None without one."""
    cuda: str | None
    """CUDA that torch was built for."""


def row_multiple_tokens(config: RunConfig) -> int:
    """Return what the length of a row, over all ranks that share it, has to be a multiple of for FP8; 1 without."""
    grid, fp8 = config.parallel, config.precision.fp8
    return 1 if fp8 == "none" else FP8_RECIPES[fp8].multiple * grid.tensor * grid.context


def gate_window(steps: int) -> int:
    """Return how many of a gate's last steps are averaged: a tenth, rounded up."""
    return -(-steps // 10)


def machine_problem(fp8: str, machine: Fp8Machine) -> Problem | None:
    """Return why a machine cannot train with an FP8 recipe, None where it can.

    Args:
        fp8: a key of FP8_RECIPES.
        machine: what there is.
    """
    needs = FP8_RECIPES[fp8]
    fits = (
        _at_least(machine.engine, needs.engine),
        machine.capability is not None and machine.capability >= needs.capability,
        _at_least(machine.cuda, needs.cuda),
    )
    if all(fits):
        return None
    gpu = "no GPU" if machine.capability is None else f"a GPU of compute capability {_dotted(machine.capability)}"
    cuda = f"torch built for CUDA {machine.cuda}" if machine.cuda else "torch built without CUDA"
    return Problem(
        f"precision.fp8 {fp8} with Transformer Engine {machine.engine or 'not installed'}, {gpu}, {cuda}",
        f"Transformer Engine {_dotted(needs.engine)} or newer, a GPU of compute capability {_dotted(needs.capability)} "
        f"or higher (H100 and H200: 9.0), CUDA {_dotted(needs.cuda)} or newer",
        "run on such a machine (`medx doctor` says what one has), or set precision.fp8=none",
    )


def _at_least(version: str | None, needed: tuple[int, int]) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= needed


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def precision_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what of `precision.` no grid could make right."""
    precision, layers = config.precision, config.model.num_layers
    if precision.fp8 == "none":
        yield from _without_fp8(config)
        return
    if precision.dtype != "bf16":
        yield Problem(
            f"precision.fp8 {precision.fp8}, precision.dtype {precision.dtype}",
            "precision.dtype bf16: layers in FP8 read and write bf16",
            "set precision.dtype=bf16, or precision.fp8=none",
        )
    first, last = precision.bf16_first_layers, precision.bf16_last_layers
    if precision.fp8 == "delayed" and first + last:
        yield Problem(
            f"precision.fp8 delayed, precision.bf16_first_layers {first}, precision.bf16_last_layers {last}",
            "all layers in FP8: delayed scaling gathers its largest values once for all layers of a stage",
            "set both to 0, or precision.fp8=tensorwise",
        )
    elif first + last >= layers:
        yield Problem(
            f"precision.bf16_first_layers {first} + precision.bf16_last_layers {last}, model.num_layers {layers}",
            "at least one decoder layer in FP8",
            "lower one of them, or set precision.fp8=none",
        )
    if precision.gate_steps > config.training.steps:
        yield Problem(
            f"precision.gate_steps {precision.gate_steps}, training.steps {config.training.steps}",
            "at most as many steps as the run: the gate trains the first ones of it",
            f"set precision.gate_steps={config.training.steps} or less",
        )
    yield from _row_alone(config)
    yield from _widths_alone(config)


def _without_fp8(config: RunConfig) -> Iterator[Problem]:
    for key, value in (("gate_steps", config.precision.gate_steps), ("fp8_vision", config.precision.fp8_vision)):
        if value:
            none = "0" if key == "gate_steps" else "false"
            yield Problem(
                f"precision.{key} {str(value).lower()}, precision.fp8 none",
                "FP8: the gate compares it with bf16" if key == "gate_steps" else "FP8 in the decoder as well",
                f"set precision.{key}={none}, or precision.fp8=tensorwise",
            )


def _row_alone(config: RunConfig) -> Iterator[Problem]:
    """A row that not even one rank could take."""
    row, multiple = config.data.seq_len_tokens, FP8_RECIPES[config.precision.fp8].multiple
    if row % multiple:
        yield Problem(
            f"data.seq_len_tokens {row}, precision.fp8 {config.precision.fp8}",
            f"a multiple of {multiple}: products in FP8 take tokens in whole groups",
            f"set {_nearest_rows(config, multiple)}{_finer(config, row, 1)}",
        )


def _row_of_a_rank(config: RunConfig) -> Iterator[Problem]:
    """A row that this grid cuts into parts which do not fit; `_row_alone` has the others."""
    if config.precision.fp8 == "none":
        return
    grid, row, multiple = config.parallel, config.data.seq_len_tokens, FP8_RECIPES[config.precision.fp8].multiple
    whole = row_multiple_tokens(config)
    if row % multiple == 0 and row % whole:
        ranks = grid.tensor * grid.context
        yield Problem(
            f"data.seq_len_tokens {row}, precision.fp8 {config.precision.fp8}, parallel.tensor {grid.tensor} x "
            f"parallel.context {grid.context}",
            f"a multiple of {whole} = {multiple} x {grid.tensor} x {grid.context}: each rank's part of a row is a "
            f"multiple of {multiple} tokens",
            f"set {_nearest_rows(config, whole)}{_finer(config, row, ranks)}, or change the grid",
            True,
        )


def _nearest_rows(config: RunConfig, multiple: int) -> str:
    """The two lengths around what was asked that are multiples of everything a row is cut by."""
    row, step = config.data.seq_len_tokens, math.lcm(multiple, config.data.sample_align_tokens)
    below, above = row // step * step, (row // step + 1) * step
    return f"data.seq_len_tokens={above}" if not below else f"data.seq_len_tokens={below} or {above}"


def _finer(config: RunConfig, width: int, ranks: int) -> str:
    """Another recipe that would do, where there is one."""
    mine = FP8_RECIPES[config.precision.fp8].multiple
    fits = FP8_RECIPES["tensorwise"].multiple
    return ", or precision.fp8=tensorwise" if fits < mine and width % (fits * ranks) == 0 else ""


def _widths_alone(config: RunConfig) -> Iterator[Problem]:
    multiple = FP8_RECIPES[config.precision.fp8].multiple
    for name, width, _ in _widths(config):
        if width % multiple:
            of_the_tower = "vision" in name
            part = "tower" if of_the_tower else "decoder"
            yield Problem(
                f"{name} {width}, precision.fp8 {config.precision.fp8}",
                f"a multiple of {multiple}: the {part}'s products in FP8 take widths in whole groups",
                f"set precision.{'fp8_vision=false' if of_the_tower else 'fp8=none'}{_finer(config, width, 1)}",
            )


def _widths_of_a_rank(config: RunConfig) -> Iterator[Problem]:
    """Widths that tensor parallelism cuts into parts which do not fit."""
    tensor = config.parallel.tensor
    if config.precision.fp8 == "none" or tensor == 1:
        return
    multiple = FP8_RECIPES[config.precision.fp8].multiple
    for name, width, is_cut in _widths(config):
        if is_cut and width % multiple == 0 and width % tensor == 0 and width % (multiple * tensor):
            yield Problem(
                f"{name} {width} / parallel.tensor {tensor} = {width // tensor}, precision.fp8 {config.precision.fp8}",
                f"a multiple of {multiple} on each tensor rank: products in FP8 take widths in whole groups",
                f"lower parallel.tensor{_finer(config, width, tensor)}",
                True,
            )


def _widths(config: RunConfig) -> Iterator[tuple[str, int, bool]]:
    """(name, width, whether tensor ranks share it) of every side of a matrix that multiplies in FP8."""
    model, vision = config.model, config.model.vision
    heads, kv_heads, size = model.num_heads, model.num_kv_heads, model.head_dim
    yield "model.hidden_size", model.hidden_size, False
    yield "model.num_heads x model.head_dim", heads * size, True
    yield "(model.num_heads + 2 x model.num_kv_heads) x model.head_dim", (heads + 2 * kv_heads) * size, True
    if model.is_moe:
        yield "model.expert_ffn_hidden_size", model.expert_ffn_hidden_size, False
    else:
        yield "model.ffn_hidden_size", model.ffn_hidden_size, True
    if config.precision.fp8_vision:
        yield "model.vision.hidden_size", vision.hidden_size, False
        yield "model.vision.ffn_hidden_size", vision.ffn_hidden_size, False


def _bf16_layers_of_a_stage(config: RunConfig) -> Iterator[Problem]:
    """Megatron wants the first layers on the first stage and the last on the last, as if stages were equal."""
    precision, stages = config.precision, config.parallel.pipeline
    most = config.model.num_layers // stages
    if precision.fp8 == "none" or stages == 1:
        return
    for key in ("bf16_first_layers", "bf16_last_layers"):
        if (value := getattr(precision, key)) > most:
            yield Problem(
                f"precision.{key} {value}, model.num_layers {config.model.num_layers}, parallel.pipeline {stages}",
                f"at most {most} = {config.model.num_layers} / {stages}: no more than an equal stage holds",
                f"set precision.{key}={most}, or lower parallel.pipeline",
                True,
            )


PRECISION_GRID_RULES = (
    (("data.seq_len_tokens", "parallel.", "precision.fp8"), _row_of_a_rank),
    (("model.", "parallel.tensor", "precision.fp8"), _widths_of_a_rank),
    (("model.num_layers", "parallel.pipeline", "precision."), _bf16_layers_of_a_stage),
)
"""(prefixes of the keys that a rule reads, the rule), for `grid.py`; every problem of theirs is of the grid."""
