"""The twenty lines a tired person checks before a run: every derived number with its arithmetic.

In: a configuration that `check` has passed. Out: lines of text, for `--dry-run` and for start-up.
Numbers come from `parameters.py`, `memory.py` and `flops.py`; nothing is computed twice, nothing is built.
"""

import itertools

from megatron_medx.config.exports import EXPORTS
from megatron_medx.config.flops import step_flops
from megatron_medx.config.grid import stage_layers
from megatron_medx.config.memory import PRECISIONS, checkpoint_bytes, worst_rank
from megatron_medx.config.parameters import (
    decoder_layer_parameters,
    deepstack_parameters,
    main_merger_parameters,
    parameter_counts,
    part_counts,
    vision_layer_parameters,
    vision_stem_parameters,
)
from megatron_medx.config.precision import FP8_RECIPES, gate_window
from megatron_medx.config.run import PARTS, RunConfig
from megatron_medx.config.validation import MAIN_SET, validation_sets

LOSS_AVERAGES = {"token": "token", "sample": "sample", "sqrt": "sample, weighted by the square root of its tokens"}
ON_BAD_LOSS = {"stop": "stop the run", "skip": "skip the update", "rollback": "skip, then roll back"}
COLUMN = 12
"""Width of the first column, characters."""


def describe(config: RunConfig) -> list[str]:
    """Return the lines that describe a run; each derived number shows how it was derived."""
    numbered = "" if config.run.folder else " or the next free number of it"
    rows = [
        ("run", f"{config.run.recipe or 'no recipe'} -> {config.run_folder}{numbered}, seed {config.run.seed}"),
        *_grid(config),
        *_amounts(config),
        *_parameters(config),
        *_training(config),
        *_costs(config),
    ]
    rows += [("megatron", f"{name} = {value}") for name, value in config.megatron.items()]
    return [f"{name:<{COLUMN}}{text}" for name, text in rows]


def learning_rate(config: RunConfig, part: str) -> float | None:
    """Return the peak learning rate of a part of the network, None when it is frozen."""
    if part in config.training.freeze:
        return None
    own = getattr(config.optimizer, f"{part}_lr")
    return config.optimizer.lr if own is None else own


def _grid(config: RunConfig) -> list[tuple[str, str]]:
    """The axes above 1 in one line; what a stage and what an expert rank holds, where there are several."""
    p, model = config.parallel, config.model
    axes = [f"{axis} {size}" for axis in ("tensor", "pipeline", "context") if (size := getattr(p, axis)) > 1]
    within = [f"{axis} {size}" for axis in ("virtual_pipeline", "expert") if (size := getattr(p, axis)) > 1]
    within += ["sequence parallel"] if p.tensor > 1 else []
    rows = [("grid", "; ".join([f"world {p.world_size} = {' x '.join([*axes, f'data {p.data}'])}", *within]))]
    if p.pipeline > 1:
        rows.append(("stages", _stages(config)))
    if model.is_moe:
        share = f"{model.num_experts} / expert {p.expert} = {model.num_experts // p.expert} on a rank"
        rows.append(("experts", f"{model.num_experts} a layer, {model.experts_per_token} for each token; {share}"))
    return rows


def _stages(config: RunConfig) -> str:
    """`13 + 3 x 17 = 64 layers`: equal neighbors are counted together."""
    runs = [(len(list(same)), layers) for layers, same in itertools.groupby(stage_layers(config))]
    text = " + ".join(f"{count} x {layers}" if count > 1 else f"{layers}" for count, layers in runs)
    chunks = config.parallel.virtual_pipeline
    text += f" = {config.model.num_layers} layers" + (f", each stage in {chunks} chunks" if chunks > 1 else "")
    return f"{text}; tower and embedding on the first, output and loss on the last"


def _amounts(config: RunConfig) -> list[tuple[str, str]]:
    data, training, side = config.data, config.training, config.model.vision.token_side_px
    tokens = training.global_batch_rows * data.seq_len_tokens
    smallest, largest = data.min_pixels // side**2, data.max_pixels // side**2
    images = (
        f"{data.min_pixels:,} to {data.max_pixels:,} px, {side} x {side} px a token: {smallest:,} to {largest:,} tokens"
    )
    if largest > data.seq_len_tokens:
        images += f"; a row holds {data.seq_len_tokens:,}, longer samples lose slices, then resolution"
    rows = "packed rows" if data.packing else "one sample a row"
    if data.max_row_patches:
        rows += f" of at most {data.max_row_patches:,} patches"
    readers = f"{data.num_workers} processes" if data.num_workers else "a thread"
    reading = f"{readers} of each rank, {data.decoder}, {data.prefetch_rows} ahead"
    replicas = config.parallel.data
    step = f"{training.global_batch_rows:,} rows x {data.seq_len_tokens:,} = at most {tokens:,} tokens; "
    step += f"rows / data {replicas} = {training.global_batch_rows // replicas:,} microbatches"
    return [
        ("data", f"{data.path or 'no path'}, {rows}; {reading}"),
        ("images", images),
        ("step", step),
        ("length", f"{training.steps:,} steps x {tokens:,} = at most {_short(training.steps * tokens)} tokens"),
    ]


def _parameters(config: RunConfig) -> list[tuple[str, str]]:
    model, counts, parts = config.model, parameter_counts(config.model), part_counts(config.model)
    vision, table = model.vision, f"{model.vocab_size:,} x {model.hidden_size:,}"
    mergers = f"{main_merger_parameters(model):,}"
    if vision.deepstack_layers:
        mergers += f" + {len(vision.deepstack_layers)} x {deepstack_parameters(model):,}"
    decoder = f"{model.num_layers} x {decoder_layer_parameters(model):,} + {model.hidden_size:,}"
    stem = f"{vision_stem_parameters(model):,} + {vision.num_layers} x {vision_layer_parameters(model):,}"
    return [
        (
            "parameters",
            f"{_short(sum(counts.values()))} = {' + '.join(f'{part} {_short(parts[part])}' for part in PARTS)}",
        ),
        ("  vision", f"{counts['vision']:,} = {stem}; {_fate(config, 'vision')}"),
        ("  merger", f"{counts['merger']:,} = {mergers}; {_fate(config, 'merger')}"),
        ("  language", f"{parts['language']:,}; {_fate(config, 'language')}"),
        ("    embed", f"{counts['embeddings']:,} = {table}"),
        ("    decoder", f"{counts['decoder']:,} = {decoder}"),
        ("    output", f"{counts['output']:,} = {table}" if counts["output"] else "0: tied to the embeddings"),
    ]


def _fate(config: RunConfig, part: str) -> str:
    rate = learning_rate(config, part)
    return "frozen" if rate is None else f"trained, lr {rate:g}"


def _training(config: RunConfig) -> list[tuple[str, str]]:
    o, t = config.optimizer, config.training
    schedule = f"{o.schedule}, warm-up {_short(o.warmup_tokens)} tokens = {config.warmup_steps:,} of {t.steps:,} steps"
    if o.schedule == "wsd":
        schedule += f", decay {_short(o.decay_tokens)} tokens = the last {config.decay_steps:,}"
    schedule += "" if o.schedule == "constant" else f", down to {o.min_lr / o.lr:.0%} of each peak"
    start = config.checkpoint.start_from or "seeded random weights"
    start += " with its optimizer state" if config.checkpoint.carry_optimizer else ""
    precision = f"{config.precision.dtype}, recompute {t.recompute} (tower {t.recompute_vision})"
    return [
        ("schedule", schedule),
        ("optimizer", f"AdamW {o.beta1:g}, {o.beta2:g}, weight decay {o.weight_decay:g}, clip {o.clip_grad_norm:g}"),
        ("loss", f"averaged per {LOSS_AVERAGES[t.loss_average]}; NaN or infinite: {ON_BAD_LOSS[t.on_bad_loss]}"),
        ("precision", f"{precision}, start from {start}"),
        *_fp8(config),
        *_validation(config),
    ]


def _fp8(config: RunConfig) -> list[tuple[str, str]]:
    """Which layers compute in FP8 and how rows fit; the gate before the run. Nothing without FP8."""
    precision, grid, row = config.precision, config.parallel, config.data.seq_len_tokens
    if precision.fp8 == "none":
        return []
    first, last, layers = precision.bf16_first_layers, precision.bf16_last_layers, config.model.num_layers
    text = f"{precision.fp8} scaling in {layers - first - last} of {layers} decoder layers"
    ends = [f"the {name} {count}" for name, count in (("first", first), ("last", last)) if count]
    text += f", {' and '.join(ends)} in bf16" if ends else ""
    text += "; tower in FP8 as well" if precision.fp8_vision else "; tower in bf16"
    part = f"{row:,} / (tensor {grid.tensor} x context {grid.context}) = {row // (grid.tensor * grid.context):,} tokens"
    text += f"; {part} of a row on a rank, a multiple of {FP8_RECIPES[precision.fp8].multiple}"
    rows = [("fp8", text)]
    if steps := precision.gate_steps:
        text = (
            f"first {steps:,} steps in FP8 and {steps:,} in bf16, from the run's weights and data; the run is refused "
        )
        text += f"where the last {gate_window(steps):,} differ by more than {precision.gate_max_gap:.3%}"
        rows.append(("gate", text))
    return rows


def _costs(config: RunConfig) -> list[tuple[str, str]]:
    memory, data, freeze = worst_rank(config), config.data, config.training.freeze
    kinds = " + ".join(f"{kind} {_gigabytes(size)}" for kind, size in memory.items() if size)
    row = step_flops(config.model, [data.seq_len_tokens], [], freeze)["total"]
    patches = data.max_pixels // config.model.vision.patch_size**2
    image = step_flops(config.model, [], [patches], freeze)["total"]
    num_rows = config.training.global_batch_rows
    flops = f"{_flops(row)} a full row x {num_rows:,} rows = {_flops(row * num_rows)} a step, "
    flops += f"+ {_flops(image)} an image of {patches:,} patches"
    rows = [
        ("memory", f"{_gigabytes(sum(memory.values()))} GB estimated on the worst rank = {kinds}"),
        (
            "checkpoint",
            f"{_gigabytes(checkpoint_bytes(config))} GB every {config.checkpoint.every_steps:,} steps{_kept(config)}",
        ),
    ]
    return [*rows, *_exports(config), ("FLOPs", flops)]


def _kept(config: RunConfig) -> str:
    """Which checkpoints stay."""
    checkpoint = config.checkpoint
    if not checkpoint.keep_last:
        return ", all stay"
    marks = f" and those of every {checkpoint.keep_every_steps:,} steps" if checkpoint.keep_every_steps else ""
    return f", the newest {checkpoint.keep_last}{marks} stay"


def _validation(config: RunConfig) -> list[tuple[str, str]]:
    """When and on what, where it is asked for."""
    training = config.training
    if not training.validate_every_steps:
        return []
    rows = f"the first {training.validate_rows:,} rows" if training.validate_rows else "all rows"
    sets = ", ".join(path if name == MAIN_SET else f"{name} ({path})" for name, path in validation_sets(config).items())
    when = "at step 0, " * training.validate_at_start + f"after every {training.validate_every_steps:,} steps"
    asked = f"; {training.validate_generations:,} questions of each answered" * bool(training.validate_generations)
    return [("validation", f"{rows} of {sets}, always the same, {when} and the last{asked}")]


def _exports(config: RunConfig) -> list[tuple[str, str]]:
    """What becomes of checkpoints, where it is asked for."""
    checkpoint = config.checkpoint
    if not checkpoint.export_every_steps:
        return []
    size = PRECISIONS[config.precision.dtype].weight * sum(parameter_counts(config.model).values())
    measure = "of lowest validation loss" if config.training.validate_every_steps else "newest"
    kept = f"the {checkpoint.keep_exports} {measure} stay" if checkpoint.keep_exports else "all stay"
    when = f"every {checkpoint.export_every_steps:,} steps and after the last"
    return [("exports", f"{_gigabytes(size)} GB {when} -> {EXPORTS}/ in the run folder, Hugging Face; {kept}")]


def _short(number: float) -> str:
    """`8767123696` -> `8.767 B` (billions); below a million all digits are shown."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:,.0f}"


def _flops(number: float) -> str:
    """`431.4e12` -> `431.4 TFLOP`."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= size:
            return f"{number / size:.4g} {unit}FLOP"
    return f"{number / 1e6:.4g} MFLOP"


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.3f}" if number < 1e9 else f"{number / 1e9:.1f}"
