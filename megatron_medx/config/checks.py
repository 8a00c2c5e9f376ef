"""Everything that can be known to be wrong before torch starts.

`check` looks only at the configuration and works for a cluster run on a laptop; `check_files` also
looks at the disk and is for the machine that launches. Both report all problems together, each as
found / needed / do. Single fields are judged by the tables in `values.py`, the grid by the rules in
`grid.py`; here are the other rules that relate fields. A rule is skipped when a field it reads is
already known to be wrong.
"""

import itertools
import math
import shutil
from collections.abc import Iterator

from megatron_medx.config.checkpoint_folders import CHECKPOINTS, check_start
from megatron_medx.config.exports import export_problems, exports_bytes
from megatron_medx.config.grid import GRID_RULES, Rule, divides
from megatron_medx.config.megatron_names import OURS
from megatron_medx.config.memory import PRECISIONS, checkpoint_bytes
from megatron_medx.config.nearest_grid import nearest_grid
from megatron_medx.config.precision import precision_problems
from megatron_medx.config.problems import Problem, raise_problems
from megatron_medx.config.profiling import profiling_problems
from megatron_medx.config.run import PARTS, RunConfig
from megatron_medx.config.survival import survival_problems
from megatron_medx.config.trackers import tracker_package_problems, tracker_problems
from megatron_medx.config.validation import validation_file_problems, validation_problems
from megatron_medx.config.values import BOUNDS, CHOICES, value_of
from megatron_medx.errors import CheckpointError


def check(config: RunConfig) -> None:
    """Refuse a configuration that cannot run, whatever the machine.

    Raises:
        ParallelismError: all problems are of the grid; the message ends with the nearest legal one.
        ConfigError: any other mixture; the message lists every problem.
    """
    bad = dict(_single_fields(config))
    problems = list(bad.values())
    for reads, rule in (*GRID_RULES, *RULES):
        if not any(key.startswith(reads) for key in bad):
            problems += rule(config)
    grid_alone = bool(problems) and all(problem.of_the_grid for problem in problems)
    raise_problems(problems, nearest_grid(config) if grid_alone else "")


def check_files(config: RunConfig, resume: bool = False) -> None:
    """Refuse a run whose inputs are not on this machine's disk or whose checkpoints will not fit on it.

    Args:
        config: the run.
        resume: it goes on from its own checkpoint; what it once started from may be gone.

    Raises:
        ConfigError: a path is missing or the disk is too full; all problems are listed.
    """
    problems = []
    if not config.data.path:
        problems.append(Problem("data.path is empty", "a folder of samples", "add data.path=FOLDER"))
    for folder in config.data_folders if config.data.path else ():
        if not (folder / "manifest.json").is_file():
            problems.append(
                Problem(
                    f"no {folder}/manifest.json" + " (a source)" * (folder / "samples.jsonl").is_file(),
                    "data.path is a folder that `medx data build` wrote, or a YAML file that mixes several",
                    f"medx data build SOURCE {folder}; the demo's: medx data demo {folder}",
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
    if config.checkpoint.start_from and not resume:
        try:
            check_start(config.checkpoint.start_from)
        except CheckpointError as error:
            problems.append(Problem(error.found, error.needed, error.do))
    problems += validation_file_problems(config)
    problems += tracker_package_problems(config)
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


def _heads(config: RunConfig) -> Iterator[Problem]:
    why = "each key/value head serves equally many query heads"
    yield from divides(config, "model.num_heads", ("model.num_kv_heads",), why)


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


def _vision(config: RunConfig) -> Iterator[Problem]:
    vision = config.model.vision
    why = "the tower's heads share its width"
    yield from divides(config, "model.vision.hidden_size", ("model.vision.num_heads",), why)
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
    optimizer, steps = config.optimizer, config.training.steps
    tokens = f"{config.tokens_per_step} tokens a step"
    if config.warmup_steps >= steps:
        yield Problem(
            f"optimizer.warmup_tokens {optimizer.warmup_tokens} = {config.warmup_steps} steps ({tokens}), "
            f"training.steps {steps}",
            "a warm-up that ends before the run does: Megatron's scheduler refuses any other",
            f"set optimizer.warmup_tokens={(steps - 1) * config.tokens_per_step} or less, or raise training.steps",
        )
    elif optimizer.schedule == "wsd" and not 0 < config.decay_steps <= steps - config.warmup_steps:
        yield Problem(
            f"optimizer.decay_tokens {optimizer.decay_tokens} = {config.decay_steps} steps ({tokens}), "
            f"training.steps {steps}, warm-up {config.warmup_steps}",
            f"a decay of 1 to {steps - config.warmup_steps} steps: schedule wsd is warm-up, stable rate, decay",
            f"set optimizer.decay_tokens from 1 to {(steps - config.warmup_steps) * config.tokens_per_step}",
        )
    if optimizer.schedule != "wsd" and optimizer.decay_tokens:
        yield Problem(
            f"optimizer.decay_tokens {optimizer.decay_tokens}, optimizer.schedule {optimizer.schedule}",
            "decay_tokens with schedule wsd alone: cosine and linear decay from warm-up to the last step",
            "set optimizer.decay_tokens=0, or optimizer.schedule=wsd",
        )
    if config.optimizer.min_lr > config.optimizer.lr:
        yield Problem(
            f"optimizer.min_lr {config.optimizer.min_lr:g}, optimizer.lr {config.optimizer.lr:g}",
            "min_lr at most lr: the rate decays",
            "lower optimizer.min_lr",
        )


def _start(config: RunConfig) -> Iterator[Problem]:
    if config.checkpoint.carry_optimizer and not config.checkpoint.start_from:
        yield Problem(
            "checkpoint.carry_optimizer=true, checkpoint.start_from is empty",
            "a run with an optimizer to carry on",
            "set checkpoint.start_from to its run folder, or checkpoint.carry_optimizer=false",
        )


def _mixture_of_experts(config: RunConfig) -> Iterator[Problem]:
    model = config.model
    if not model.is_moe:
        return
    if not 1 <= model.experts_per_token <= model.num_experts:
        yield Problem(
            f"model.experts_per_token {model.experts_per_token}, model.num_experts {model.num_experts}",
            f"from 1 to {model.num_experts}: the router chooses among the experts",
            "change model.experts_per_token",
        )
    width, inner = model.hidden_size, model.expert_ffn_hidden_size
    if inner < 1 or width in (inner, 2 * inner):
        yield Problem(
            f"model.expert_ffn_hidden_size {inner}, model.hidden_size {width}",
            "at least 1, neither hidden_size nor half of it: with equal sides nothing tells the two layouts that "
            "expert matrices have in Hugging Face directories apart",
            "change model.expert_ffn_hidden_size",
        )


def _alignment(config: RunConfig) -> Iterator[Problem]:
    row, align = config.data.seq_len_tokens, config.data.sample_align_tokens
    if row % align:
        fits = f"{row // align * align} or {(row // align + 1) * align}" if row > align else f"{align}"
        yield Problem(
            f"data.seq_len_tokens {row}, data.sample_align_tokens {align}",
            "seq_len_tokens a multiple: a row is made of aligned samples, and its tail is aligned too",
            f"set data.seq_len_tokens={fits}, or change data.sample_align_tokens",
        )


def _decoder(config: RunConfig) -> Iterator[Problem]:
    if config.data.decoder == "dali" and config.data.num_workers:
        yield Problem(
            f"data.decoder dali, data.num_workers {config.data.num_workers}",
            "no worker processes: DALI has threads of its own, and only the rank itself may use its GPU",
            "set data.num_workers=0",
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
    stay = max(1, config.checkpoint.keep_last)  # where all are kept, only the first two can be asked for
    num = 1 + stay - min(stay, len(list((folder / CHECKPOINTS).glob("iter_*"))))  # those of a resumed run are there
    free, needed = shutil.disk_usage(existing).free, num * checkpoint_bytes(config)
    do = ", lower checkpoint.keep_last" if num > 2 else ""
    what = "two checkpoints, the last good one and the one being written" if num == 2 else "one more checkpoint"
    if num > 2:
        what = f"{num} checkpoints, the {num - 1} that stay and the one being written"
    if config.checkpoint.export_every_steps:
        needed += exports_bytes(config, PRECISIONS[config.precision.dtype].weight)
        what, do = f"{what}; and the exports that stay", f"{do}, lower checkpoint.keep_exports"
    if free < needed:
        yield Problem(
            f"{free / 1e9:.1f} GB free at {existing}",
            f"{needed / 1e9:.1f} GB: {what}",
            f"free some space{do}, or set run.folder to another disk",
        )


RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("model.num_heads", "model.num_kv_heads"), _heads),
    (("model.vision.num_layers", "model.num_layers"), _deepstack),
    (("model.vision.",), _vision),
    (("model.head_dim",), _rotary),
    (("data.min_pixels", "data.max_pixels", "model.vision."), _pixels),
    (("model.vocab_size",), _tokens),
    ((), _parts),
    (("optimizer.", "training.", "data.seq_len_tokens"), _schedule),
    ((), _start),
    (("training.", "data.seq_len_tokens"), validation_problems),
    (("training.",), profiling_problems),
    (("checkpoint.", "training."), export_problems),
    (("checkpoint.", "training.", "survival."), survival_problems),
    (("data.seq_len_tokens", "data.sample_align_tokens"), _alignment),
    (("model.num_experts",), _mixture_of_experts),
    (("precision.", "model.", "training.steps", "data.seq_len_tokens", "data.sample_align_tokens"), precision_problems),
    (("data.decoder", "data.num_workers"), _decoder),
    ((), tracker_problems),
    ((), _megatron),
    ((), _folder),
)
"""(prefixes of the keys a rule reads, the rule)."""
