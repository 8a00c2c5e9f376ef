"""The runs that gpu.py measures, as configurations: published sizes, cut in depth alone until they fit the GPU.

No torch here, so that every configuration is built and checked on any machine. `tiny` runs are the same runs with a
small network, for machines without a GPU.
"""

from dataclasses import dataclass
from pathlib import Path

from megatron_medx.config.checks import check
from megatron_medx.config.memory import worst_rank
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.run import RunConfig
from megatron_medx.errors import ConfigError
from megatron_medx.recipes import get_recipe
from megatron_medx.recipes.sizes import qwen3_vl_2b, qwen3_vl_4b

SIZES = {"2b": qwen3_vl_2b, "4b": qwen3_vl_4b}
"""Dense shapes that are measured."""

FP8_SIZE = "4b"
"""Shape on which FP8 is measured: its hidden size is 2,560, from which on the gain is promised."""

FP8_RECIPES = ("tensorwise", "delayed", "blockwise")
"""Values of `precision.fp8`, in the order in which they are measured."""

MEMORY_SHARE = 0.85
"""Of the GPU's memory that the estimate of config/memory.py may fill: context, kernels' buffers and fragments need the
rest. Assumed."""

LAYER_STEP = 4
"""Decoder layers that are left out at a time."""

ROW_TOKENS, ROWS_PER_STEP = 4096, 16
"""Rows of a step of 65,536 token slots: the optimizer's share of a step is that of a run with few replicas."""

PROFILED_ROWS = 2
"""Rows of the profiled step: a trace of 16 would have millions of events."""

UNPACKED = ("data.packing=false", "training.global_batch_rows=96")
"""Rows of one sample each, about as many tokens a step as ROWS_PER_STEP packed rows hold."""

DATA = (
    "data.packing=true", f"data.seq_len_tokens={ROW_TOKENS}", "data.sample_align_tokens=1", "data.min_pixels=65536",
    "data.max_pixels=589824", "data.max_row_patches=8192", "data.num_workers=4", "data.prefetch_rows=4",
)  # fmt: skip
"""Images become 64 to 576 tokens, and those of a row at most 2,048: the decoder has most of the work."""

RUN = (
    "parallel.world_size=1", "parallel.tensor=1", "precision.dtype=bf16", f"training.global_batch_rows={ROWS_PER_STEP}",
    "training.steps=100000", "optimizer.lr=1e-5", "optimizer.min_lr=1e-5", "optimizer.schedule=constant",
    "optimizer.warmup_tokens=0", "checkpoint.every_steps=1000000", "checkpoint.checksums=false",
    "log.tensorboard=false",
)  # fmt: skip
"""A measured run ends itself after some steps (train.py), long before its last one, so it saves nothing."""

TINY = (
    "precision.dtype=fp32", "data.seq_len_tokens=2048", "data.min_pixels=4096", "data.max_pixels=25600",
    "data.num_workers=0", "training.global_batch_rows=1",
)  # fmt: skip
"""What a tiny run has instead, beside the demo's network."""

GATE = (
    "model.hidden_size=512", "model.num_layers=8", "model.num_heads=8", "model.num_kv_heads=4", "model.head_dim=64",
    "model.ffn_hidden_size=1536", "model.mrope_section=12,10,10", "model.vision.hidden_size=256",
    "model.vision.num_layers=6", "model.vision.num_heads=4", "model.vision.ffn_hidden_size=1024",
    "model.vision.deepstack_layers=1,3", "data.packing=true", "data.seq_len_tokens=2048", "data.sample_align_tokens=1",
    "data.max_pixels=262144", "data.num_workers=4", "parallel.world_size=1", "parallel.tensor=1",
    "precision.dtype=bf16", "training.global_batch_rows=4", "optimizer.lr=3e-4", "optimizer.min_lr=3e-4",
    "optimizer.schedule=constant", "optimizer.warmup_tokens=81920",
    "checkpoint.every_steps=1000000", "checkpoint.checksums=false", "log.tensorboard=false",
)  # fmt: skip
"""The network of 37 M parameters on which FP8 passes its gate: every product's sides are multiples of 128."""

GATE_STEPS = 200


@dataclass(frozen=True, slots=True)
class Device:
    """The GPU, as its driver names it."""

    name: str
    memory_bytes: int


H100 = Device("NVIDIA H100 80GB HBM3", 81559 * 2**20)
H200 = Device("NVIDIA H200", 143771 * 2**20)
"""As drivers name them; memory in MiB by nvidia-smi."""


def demo_run(data: Path, folder: Path, words: tuple[str, ...]) -> RunConfig:
    """The demo's run with these overrides, on this data, in this folder; checked."""
    places = (f"data.path={data}", f"run.folder={folder}")
    config = apply_overrides(get_recipe("demo"), [*words, *places])
    check(config)
    return config


def speed_run(
    size: str,
    data: Path,
    folder: Path,
    *,
    device: Device,
    words: tuple[str, ...] = (),
    layers: int | None = None,
    tiny: bool = False,
) -> RunConfig:
    """The run whose speed is measured; checked.

    Args:
        size: a key of SIZES.
        data: folder that `medx data build` wrote (data.py).
        folder: run folder; must not exist.
        device: its memory decides how many decoder layers stay.
        words: further overrides.
        layers: decoder layers; None for as many as fit.
        tiny: the demo's network in fp32 instead.

    Raises:
        ConfigError: not even LAYER_STEP layers fit, or the configuration cannot run.
    """
    if tiny:
        return demo_run(data, folder, DATA + RUN + TINY + words)
    config = demo_run(data, folder, DATA + RUN)
    config.model = with_ids_of(SIZES[size](), config.model)
    config = apply_overrides(config, list(words))
    if layers is None:  # as many as fit in every precision that is measured: weights in FP8 are held beside bf16 ones
        most = apply_overrides(config, [f"precision.fp8={FP8_RECIPES[0]}"]) if size == FP8_SIZE else config
        fit_layers(most, device)
        layers = most.model.num_layers
    config.model.num_layers = layers
    check(config)
    return config


def gate_run(data: Path, folder: Path, fp8: str, gate_steps: int = GATE_STEPS) -> RunConfig:
    """A run of a small network that first passes the gate of an FP8 recipe, from seeded weights.

    As many steps are trained once more behind the gate, which then saves: in all that is what a user does.
    """
    asked = f"precision.fp8={fp8}", f"precision.gate_steps={gate_steps}", f"training.steps={gate_steps}"
    return demo_run(data, folder, (*GATE, *asked))


def with_ids_of(model: ModelConfig, processor: ModelConfig) -> ModelConfig:
    """The network with the special tokens of another one: those of the processor that encodes the samples."""
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(model, name, getattr(processor, name))
    return model


def fit_layers(config: RunConfig, device: Device) -> None:
    """Leave out decoder layers until the estimated worst rank fills at most MEMORY_SHARE of the GPU, in place.

    Raises:
        ConfigError: not even LAYER_STEP layers fit.
    """
    limit = MEMORY_SHARE * device.memory_bytes
    while sum(worst_rank(config).values()) > limit:
        config.model.num_layers -= LAYER_STEP
        if config.model.num_layers < LAYER_STEP:
            raise ConfigError(
                f"a network of width {config.model.hidden_size} with {LAYER_STEP} layers on {device.name}",
                f"at most {limit / 1e9:.0f} GB by the estimate, {MEMORY_SHARE:.0%} of its memory",
                "take a GPU with more memory",
            )
