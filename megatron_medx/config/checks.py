"""Everything that can be known to be wrong before torch starts.

`check` looks only at the configuration and works for a cluster run on a laptop; `check_files` also
looks at the disk and is for the machine that launches. Both report all problems together, each as
found / needed / do. Single fields are judged by the tables in `values.py`; here are the rules that
relate fields. A rule is skipped when a field it reads is already known to be wrong.
"""

import itertools
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_medx.config.megatron_names import OURS
from megatron_medx.config.memory import checkpoint_bytes
from megatron_medx.config.problems import Problem, raise_problems
from megatron_medx.config.run import PARTS, RunConfig
from megatron_medx.config.values import BOUNDS, CHOICES, NOT_YET, value_of

DIVIDES: tuple[tuple[str, tuple[str, ...], bool, str], ...] = (
    ("model.num_heads", ("model.num_kv_heads",), False, "each key/value head serves equally many query heads"),
    ("model.num_heads", ("parallel.tensor",), True, "every tensor rank holds whole heads"),
    ("model.num_kv_heads", ("parallel.tensor",), True, "key/value heads are not copied over ranks in this version"),
    ("model.ffn_hidden_size", ("parallel.tensor",), True, "every tensor rank holds an equal slice of the MLP"),
    ("model.vocab_size", ("parallel.tensor",), True, "the embedding has no padded rows"),
    ("data.seq_len_tokens", ("parallel.tensor",), True, "sequence parallelism cuts rows evenly"),
    ("model.num_layers", ("parallel.pipeline", "parallel.virtual_pipeline"), True, "every stage holds equally many"),
    ("parallel.world_size", ("parallel.tensor", "parallel.pipeline", "parallel.context"), True, "the rest is data"),
    ("model.vision.hidden_size", ("model.vision.num_heads",), False, "the tower's heads share its width"),
)
"""(dividend, divisors that are multiplied, whether the grid is at fault, why)."""


def check(config: RunConfig) -> None:
    """Refuse a configuration that cannot run, whatever the machine.

    Raises:
        ParallelismError: all problems are of the grid.
        ConfigError: any other mixture; the message lists every problem.
    """
    bad = dict(_single_fields(config))
    problems = list(bad.values())
    for reads, rule in RULES:
        if not any(key.startswith(reads) for key in bad):
            problems += rule(config)
    for dividend, divisors, of_the_grid, why in DIVIDES:
        if not bad.keys() & {dividend, *divisors}:
            problems += _divides(config, dividend, divisors, of_the_grid, why)
    raise_problems(problems)


def check_files(config: RunConfig) -> None:
    """Refuse a run whose inputs are not on this machine's disk or whose checkpoints will not fit on it.

    Raises:
        ConfigError: a path is missing or the disk is too full; all problems are listed.
    """
    problems = []
    if not config.data.path:
        problems.append(Problem("data.path is empty", "a folder of samples", "add data.path=FOLDER"))
    elif not (Path(config.data.path) / "samples.jsonl").is_file():
        problems.append(
            Problem(
                f"no {config.data.path}/samples.jsonl",
                "data.path is a folder with samples.jsonl and images/",
                f"write the demo's with `medx data demo {config.data.path}`, or set data.path",
            )
        )
    if config.data.path and not config.processor_folder.is_dir():
        problems.append(
            Problem(
                f"no folder {config.processor_folder}",
                "a Hugging Face directory with tokenizer, chat template and image-processor files",
                "set data.processor, or put the files into <data.path>/processor",
            )
        )
    if config.checkpoint.start_from and not Path(config.checkpoint.start_from).is_dir():
        problems.append(
            Problem(
                f"checkpoint.start_from: no folder {config.checkpoint.start_from}",
                "a Megatron checkpoint folder",
                "correct the path; a Hugging Face directory goes through `medx convert to-megatron HF OUT` first",
            )
        )
    problems += _disk(config)
    raise_problems(problems)


def _single_fields(config: RunConfig) -> Iterator[tuple[str, Problem]]:
    for key, bound in BOUNDS.items():
        value = value_of(config, key)
        if value is not None and not bound.holds(value):
            yield key, Problem(f"{key} is {value}", f"{key} {bound}", f"change {key}")
    for key, choices in CHOICES.items():
        value = value_of(config, key)
        if value not in choices:
            yield key, Problem(f"{key} is {value!r}", f"one of {', '.join(choices)}", f"set {key}={choices[0]}")
    for key, (most, name) in NOT_YET.items():
        if (value := value_of(config, key)) > most:
            yield (
                key,
                Problem(
                    f"{key} is {value}", f"{key}={most}: this version has not {name} yet", f"set {key}={most}", True
                ),
            )


def _divides(
    config: RunConfig, dividend: str, divisors: tuple[str, ...], of_the_grid: bool, why: str
) -> Iterator[Problem]:
    value, factors = value_of(config, dividend), [value_of(config, key) for key in divisors]
    product = math.prod(factors)
    if value % product:
        named = " x ".join(f"{key} {factor}" for key, factor in zip(divisors, factors, strict=True))
        total = f" = {product}" if len(factors) > 1 else ""
        multiple = -(-value // product) * product
        do = f"change {' or '.join(divisors)}"
        if dividend == "parallel.world_size":
            do = f"start {multiple} ranks with --nproc {multiple}, or {do}"
        yield Problem(f"{dividend} {value}, {named}{total}", f"{dividend} a multiple: {why}", do, of_the_grid)


def _rows(config: RunConfig) -> Iterator[Problem]:
    parallel, rows = config.parallel, config.training.global_batch_rows
    replicas = parallel.data
    if parallel.world_size % (parallel.tensor * parallel.pipeline * parallel.context) or rows % replicas == 0:
        return  # a grid that does not divide is reported by its own rule
    yield Problem(
        f"training.global_batch_rows {rows}, data-parallel replicas {replicas} "
        f"(world {parallel.world_size} / tensor {parallel.tensor} / pipeline {parallel.pipeline} "
        f"/ context {parallel.context})",
        "as many rows for every replica",
        f"set training.global_batch_rows={-(-rows // replicas) * replicas}, or change the grid",
        True,
    )


def _deepstack(config: RunConfig) -> Iterator[Problem]:
    layers, depth = config.model.vision.deepstack_layers, config.model.vision.num_layers
    key = "model.vision.deepstack_layers"
    if any(not 0 <= layer < depth for layer in layers):
        yield Problem(f"{key} {layers}, tower of {depth} layers", f"layers from 0 to {depth - 1}", f"change {key}")
    if any(a >= b for a, b in itertools.pairwise(layers)):
        yield Problem(
            f"{key} {layers}", "ascending, none twice", f"set {key}={','.join(map(str, sorted(set(layers))))}"
        )
    if len(layers) > config.model.num_layers:
        yield Problem(
            f"{len(layers)} {key}, {config.model.num_layers} decoder layers",
            "a decoder layer for each",
            f"shorten {key}",
        )
        return
    parallel = config.parallel
    first_chunk = config.model.num_layers // (parallel.pipeline * parallel.virtual_pipeline)
    if first_chunk < len(layers):
        yield Problem(
            f"{first_chunk} decoder layers on the first pipeline stage "
            f"({config.model.num_layers} / pipeline {parallel.pipeline} "
            f"/ virtual_pipeline {parallel.virtual_pipeline}), "
            f"{len(layers)} {key}",
            f"at least {len(layers)}: DeepStack feeds decoder layers 0 to {len(layers) - 1}, beside the tower",
            "lower parallel.pipeline or parallel.virtual_pipeline",
            True,
        )


def _vision(config: RunConfig) -> Iterator[Problem]:
    vision = config.model.vision
    head_size, rest = divmod(vision.hidden_size, vision.num_heads)
    if not rest and head_size % 4:
        yield Problem(
            f"vision head size {head_size} ({vision.hidden_size} / {vision.num_heads})",
            "a multiple of 4: the 2-D rotary embedding turns pairs along height and along width",
            "change model.vision.hidden_size or model.vision.num_heads",
        )
    positions = vision.num_position_embeddings
    side = math.isqrt(positions)
    if side * side != positions:
        yield Problem(
            f"model.vision.num_position_embeddings {positions}",
            "a square number: the positions are a square grid",
            f"set model.vision.num_position_embeddings={side * side} or {(side + 1) ** 2}",
        )


def _rotary(config: RunConfig) -> Iterator[Problem]:
    model, section = config.model, config.model.mrope_section
    if model.head_dim % 2:
        yield Problem(f"model.head_dim {model.head_dim}", "an even number: rotary turns pairs", "change model.head_dim")
        return
    half = model.head_dim // 2
    if sum(section) != half or min(section) < 0:
        yield Problem(
            f"model.mrope_section {section}, sum {sum(section)}",
            f"three numbers from 0 with sum {half} (head_dim {model.head_dim} / 2)",
            "change model.mrope_section",
        )
    elif 3 * section[1] > half + 1 or 3 * section[2] > half:
        # frequency 1, 4, 7, ... belong to height and 2, 5, 8, ... to width; beyond the last one they are cut silently
        yield Problem(
            f"model.mrope_section {section}",
            f"height at most {(half + 1) // 3} and width at most {half // 3}: every third of {half} frequencies",
            "give the rest to time, the first number of model.mrope_section",
        )


def _pixels(config: RunConfig) -> Iterator[Problem]:
    data, vision = config.data, config.model.vision
    if data.min_pixels > data.max_pixels:
        yield Problem(
            f"data.min_pixels {data.min_pixels}, data.max_pixels {data.max_pixels}",
            "min_pixels at most max_pixels",
            "change one of them",
        )
    side = vision.merge_size * vision.patch_size
    if data.min_pixels < side**2:
        yield Problem(
            f"data.min_pixels {data.min_pixels}",
            f"at least {side**2} = ({vision.merge_size} x {vision.patch_size})^2: the smallest image is one token",
            f"set data.min_pixels={side**2} or more",
        )


def _tokens(config: RunConfig) -> Iterator[Problem]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: getattr(config.model, name) for name in names}
    outside = {name: token for name, token in ids.items() if not 0 <= token < config.model.vocab_size}
    if outside or len(set(ids.values())) < len(ids):
        yield Problem(
            ", ".join(f"model.{name} {token}" for name, token in (outside or ids).items()),
            f"four different ids below model.vocab_size {config.model.vocab_size}",
            "take the ids from the tokenizer",
        )


def _parts(config: RunConfig) -> Iterator[Problem]:
    freeze = config.training.freeze
    unknown = [part for part in freeze if part not in PARTS]
    if unknown or len(set(freeze)) < len(freeze):
        yield Problem(
            f"training.freeze {','.join(freeze)}", f"any of {', '.join(PARTS)}, none twice", "change training.freeze"
        )
    elif len(freeze) == len(PARTS):
        yield Problem(
            "training.freeze names all parts", "at least one part that is trained", "take one out of training.freeze"
        )


def _schedule(config: RunConfig) -> Iterator[Problem]:
    warmup, steps = config.optimizer.warmup_steps, config.training.steps
    if warmup >= steps:
        yield Problem(
            f"optimizer.warmup_steps {warmup}, training.steps {steps}",
            "a warm-up that ends before the run does: Megatron's scheduler refuses any other",
            f"set optimizer.warmup_steps={steps - 1} or less, or raise training.steps",
        )
    if config.optimizer.min_lr > config.optimizer.lr:
        yield Problem(
            f"optimizer.min_lr {config.optimizer.min_lr:g}, optimizer.lr {config.optimizer.lr:g}",
            "min_lr at most lr: the rate decays",
            "lower optimizer.min_lr",
        )


def _experts(config: RunConfig) -> Iterator[Problem]:
    if config.parallel.expert > 1:
        yield Problem(
            f"parallel.expert {config.parallel.expert} on a dense model",
            "parallel.expert=1: there are no experts to share",
            "set parallel.expert=1",
            True,
        )


def _megatron(config: RunConfig) -> Iterator[Problem]:
    for name, value in config.megatron.items():
        if (ours := OURS.get(name)) is None:
            continue
        if ours.startswith("<"):
            yield Problem(f"megatron.{name}={value}", f"not set by hand: {ours.strip('<>')}", f"remove megatron.{name}")
        else:
            yield Problem(f"megatron.{name}={value}", f"our own name for it, {ours}", f"write {ours}=VALUE instead")


def _folder(config: RunConfig) -> Iterator[Problem]:
    if not config.run.folder and not config.run.recipe:
        yield Problem("run.folder and run.recipe are empty", "a folder for the run", "add run.folder=runs/NAME")


def _disk(config: RunConfig) -> Iterator[Problem]:
    folder = config.run_folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        yield Problem(f"{existing} is a file", "run.folder is a folder", "change run.folder")
        return
    free, needed = shutil.disk_usage(existing).free, 2 * checkpoint_bytes(config)
    if free < needed:
        yield Problem(
            f"{free / 1e9:.1f} GB free at {existing}",
            f"{needed / 1e9:.1f} GB: two checkpoints, the last good one and the one being written",
            "free some space, or set run.folder to another disk",
        )


RULES: tuple[tuple[tuple[str, ...], Callable[[RunConfig], Iterator[Problem]]], ...] = (
    (("parallel.", "training.global_batch_rows"), _rows),
    (("model.vision.num_layers", "model.num_layers", "parallel."), _deepstack),
    (("model.vision.",), _vision),
    (("model.head_dim",), _rotary),
    (("data.min_pixels", "data.max_pixels", "model.vision."), _pixels),
    (("model.vocab_size",), _tokens),
    ((), _parts),
    (("optimizer.lr", "optimizer.min_lr", "optimizer.warmup_steps", "training.steps"), _schedule),
    (("parallel.expert",), _experts),
    ((), _megatron),
    ((), _folder),
)
"""(prefixes of the keys a rule reads, the rule)."""
