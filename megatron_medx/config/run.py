"""RunConfig: one complete, typed description of a training run.

Recipes build it, the command line overrides single fields, `checks.py` refuses what cannot run,
`files.py` writes it beside the checkpoints as `run.yaml`. Nothing here imports torch or Megatron:
a laptop can validate a cluster run. Megatron's own vocabulary lives in `training/megatron_args.py` alone.
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from megatron_medx.config.data import MIXTURE_SUFFIXES, DataSection
from megatron_medx.config.log import LogSection
from megatron_medx.config.model import ModelConfig

PARTS = ("vision", "merger", "language")
"""The three parts of the network that can be frozen or given a learning rate of their own."""


@dataclass(kw_only=True, slots=True)
class RunSection:
    """Where the run lives and what makes it repeatable."""

    recipe: str = ""
    """Name of the recipe this configuration came from."""
    folder: str = ""
    """Run folder: checkpoints, metrics, logs and pictures go here. Empty means `runs/<recipe>`."""
    license: str = ""
    """License of the trained weights as the hub names it, for the model card; empty: that of the base model."""
    seed: int = 1234
    """Seed of the initial weights (with each parameter's name) and of the order of data."""


@dataclass(kw_only=True, slots=True)
class ParallelSection:
    """The grid of ranks. world_size = tensor x pipeline x context x data."""

    world_size: int = 1
    """Number of ranks (GPUs). `--nproc` and Slurm set it; of a recipe by name they choose the grid, too."""
    tensor: int = 1
    """Ranks that share every weight matrix of the decoder. Above 1, sequence parallelism is on."""
    pipeline: int = 1
    """Stages the decoder's layers are cut into."""
    virtual_pipeline: int = 1
    """Model chunks per stage (interleaved schedule); 1 is the plain schedule."""
    first_stage_layers: int | None = None
    """Decoder layers of the first stage, which also carries tower and embedding; None means as many as the others."""
    last_stage_layers: int | None = None
    """Decoder layers of the last stage, which also carries output layer and loss; None means as many as the others."""
    context: int = 1
    """Ranks that share one row's tokens."""
    expert: int = 1
    """Ranks that share the experts of a mixture-of-experts layer; they are taken from tensor x context x data."""

    @property
    def data(self) -> int:
        """Data-parallel replicas: what the other axes leave of world_size."""
        return self.world_size // (self.tensor * self.pipeline * self.context)


@dataclass(kw_only=True, slots=True)
class OptimizerSection:
    """AdamW and its schedule."""

    lr: float = 1e-4
    """Peak learning rate of every part that has none of its own."""
    vision_lr: float | None = None
    """Peak learning rate of the vision tower; None means `lr`."""
    merger_lr: float | None = None
    """Peak learning rate of the mergers; None means `lr`."""
    language_lr: float | None = None
    """Peak learning rate of embeddings, decoder and output layer; None means `lr`."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay (scaled with each part's peak)."""
    schedule: str = "cosine"
    """After warm-up: `cosine`, `linear`, `constant`, or `wsd` (stable, then decayed to min_lr in the last steps)."""
    warmup_tokens: int = 0
    """Linear warm-up from 0, in token slots (global_batch_rows x seq_len_tokens a step); whole steps, rounded up."""
    decay_tokens: int = 0
    """Token slots of the decay at the end of a `wsd` schedule; whole steps, rounded up."""
    weight_decay: float = 0.1
    """Decoupled weight decay; norms and biases have none."""
    beta1: float = 0.9
    """Adam's first moment decay."""
    beta2: float = 0.95
    """Adam's second moment decay."""
    eps: float = 1e-8
    """Adam's epsilon."""
    clip_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 switches clipping off."""


@dataclass(kw_only=True, slots=True)
class TrainingSection:
    """How long, how much at once, what is trained."""

    steps: int = 100
    """Optimizer steps."""
    global_batch_rows: int = 8
    """Rows per step over all data-parallel ranks. A microbatch is one row."""
    freeze: tuple[str, ...] = ()
    """Parts that are not trained: any of `vision`, `merger`, `language`."""
    recompute: str = "none"
    """Activation recomputation of the decoder: `none`, `selective` (core attention) or `full`.

    Attention that stores no scores, as Transformer Engine's, keeps more with `selective` than with `none`, by estimate.
    """
    recompute_vision: str = "none"
    """The same for the vision tower."""
    loss_average: str = "token"
    """How token losses of a global batch are averaged: per `token`, per `sample`, or `sqrt` between the two.

    With n_s trained tokens in sample s and p = 0 (token), 1 (sample) or 1/2 (sqrt):
    loss = sum_s n_s^-p sum_i l_si / sum_s n_s^(1-p). Samples without trained tokens do not count. A token of a message
    with a `weight` counts for so many, in both sums and in n_s.
    """
    elastic: bool = False
    """Let a job go on with fewer or more ranks than the run began with: its data-parallel size changes.

    Every step holds the same global_batch_rows rows either way. False: such a job is refused before it starts.
    """
    on_bad_loss: str = "stop"
    """A step whose loss or gradient is NaN or infinite: `stop` the run before anything is saved, or `skip` the update.

    `rollback`: skip, and where bad steps repeat (`survival.bad_steps`), go back to a checkpoint before them and leave
    their rows out for good. In any case sample ids go to the screen and to `bad_steps.jsonl`.
    """
    validate_every_steps: int = 0
    """Validate on `data.validation_path` and `data.validation_sets` after every so many steps, and after the last.

    0 means never.
    """
    validate_rows: int = 0
    """Most rows of each set that are looked at, its first ones, always the same.

    A multiple of global_batch_rows; a set has as many such multiples as one epoch holds at most, and 0 means all.
    """
    validate_at_start: bool = True
    """Also validate step 0, before anything is learned, of a run that is validated."""
    validate_generations: int = 0
    """Samples of each validation set, the first ones, whose last question is answered at each validation, greedily.

    They go to `generations.jsonl`. An answer's every token is a forward pass over all of them.
    """
    validate_generation_tokens: int = 32
    """Longest answer there."""
    profile: str = ""
    """Steps A:B, both included, that PyTorch's profiler records on every rank into `profile/`; empty means none."""
    nvtx: bool = False
    """Name the parts of a step for NVIDIA Nsight Systems (`nsys profile`)."""


@dataclass(kw_only=True, slots=True)
class PrecisionSection:
    """In which numbers the network computes, and the proof that fewer bits lose nothing."""

    dtype: str = "bf16"
    """Of weights and activations: `bf16`, with fp32 main weights and gradients, or `fp32`."""
    fp8: str = "none"
    """Scaling recipe of Transformer Engine for the decoder's matrix products: `none`, `delayed`, `tensorwise`,
    `blockwise`. Weights stay bf16; embedding, output layer, attention cores and mergers compute in bf16.

    `delayed` scales by the largest values of earlier steps, `tensorwise` by those of the tensor at hand, `blockwise`
    by those of its blocks of 128.
    """
    bf16_first_layers: int = 0
    """Decoder layers at the beginning that compute in bf16 all the same."""
    bf16_last_layers: int = 0
    """The same at the end."""
    fp8_vision: bool = False
    """True: the vision tower's layers compute in FP8, too."""
    gate_steps: int = 0
    """Before the run so many steps are trained twice, in bf16 and in FP8, from its weights and data; 0: none are.

    A gap of their losses above `gate_max_gap` refuses the run.
    """
    gate_max_gap: float = 0.005
    """Largest |FP8 loss / bf16 loss - 1|, of losses averaged over the last tenth of the gate's steps."""


@dataclass(kw_only=True, slots=True)
class CheckpointSection:
    """What is saved, how often, and what the run starts from."""

    every_steps: int = 100
    """Save after every so many steps, and always after the last."""
    start_from: str = ""
    """What the run starts from, at step 0: a run folder, a Megatron checkpoint or a Hugging Face directory.

    A run folder and a checkpoint's root mean their newest step, an `iter_` folder means itself; a Hugging Face
    directory is converted at launch. Empty means seeded weights.
    """
    carry_optimizer: bool = False
    """Also take Adam's moments from `start_from`; the schedule starts anew all the same."""
    async_save: bool = False
    """Write checkpoints from a background process while training goes on."""
    export_every_steps: int = 0
    """Write `exports/iter_<step>`, a Hugging Face directory, of so many steps' checkpoints, and of the last.

    A multiple of every_steps; 0 means never. A process of low priority converts the finished checkpoint while training
    goes on.
    """
    keep_exports: int = 0
    """Exports that stay: so many of the lowest validation loss, without validation of the newest; 0 keeps all."""
    keep_last: int = 0
    """Newest checkpoints that stay, at least 2, so that a damaged one has another behind it; 0 keeps all."""
    keep_every_steps: int = 0
    """Checkpoints of multiples of so many steps stay as well, for ever; 0 means none do."""
    checksums: bool = True
    """Write SHA-256 sums of a checkpoint's files into its `integrity.json`, beside training; a resume verifies them."""


@dataclass(kw_only=True, slots=True)
class SurvivalSection:
    """When a run counts as hung, failing or diverging, and how often it is tried again."""

    max_failures: int = 3
    """Failures in succession, without a new step between them, after which a job gives up."""
    hang_factor: float = 20.0
    """A step that takes longer than so many medians of the steps before has hung; 0 never looks."""
    hang_min_s: float = 300.0
    """And at least so many seconds."""
    start_patience_s: float = 1800.0
    """Seconds that a launch may take to its first step, which also loads a checkpoint and compiles kernels; between
    two steps, a save or a validation."""
    bad_steps: int = 3
    """Bad steps in succession at which `training.on_bad_loss=rollback` goes back."""
    spike_factor: float = 0.0
    """With `rollback`, a loss above so many times the median of the last 100 sound steps is bad as well; 0: none is.

    Its update is left out, too. Nothing is a spike before 20 losses are known.
    """
    max_rollbacks: int = 5
    """Times that a run is rolled back before it stops."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """A whole run. Sections are described above, each field with its unit."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelConfig
    data: DataSection = field(default_factory=DataSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    precision: PrecisionSection = field(default_factory=PrecisionSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    survival: SurvivalSection = field(default_factory=SurvivalSection)
    log: LogSection = field(default_factory=LogSection)
    megatron: dict[str, object] = field(default_factory=dict)
    """Any Megatron argument without a name here, under Megatron's own name: `megatron.overlap_grad_reduce=true`."""

    @property
    def tokens_per_step(self) -> int:
        """Token slots of a global batch: what warm-up and decay are counted in."""
        return self.training.global_batch_rows * self.data.seq_len_tokens

    @property
    def warmup_steps(self) -> int:
        """`optimizer.warmup_tokens` in whole steps, rounded up."""
        return -(-self.optimizer.warmup_tokens // self.tokens_per_step)

    @property
    def decay_steps(self) -> int:
        """`optimizer.decay_tokens` in whole steps, rounded up."""
        return -(-self.optimizer.decay_tokens // self.tokens_per_step)

    @property
    def run_folder(self) -> Path:
        """Where the run writes: `run.folder`, or `runs/<recipe>` when empty (the launcher numbers repetitions)."""
        return Path(self.run.folder or f"runs/{self.run.recipe}")

    @property
    def data_folders(self) -> list[Path]:
        """The data folder, or those of a mixture: paths in its YAML file are relative to the file's own folder.

        A file that is no mixture gives none; `data/plan/mixture.py` says what is wrong with it.
        """
        path = Path(self.data.path)
        if path.suffix not in MIXTURE_SUFFIXES:
            return [path]
        mixture = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
        sources = mixture.get("sources") if isinstance(mixture, dict) else None
        entries = [entry for entry in sources if isinstance(entry, dict)] if isinstance(sources, list) else []
        return [path.parent / str(entry.get("path")) for entry in entries]

    @property
    def processor_folder(self) -> Path:
        """Where tokenizer and image processor lie: `data.processor`, or when that is empty in the first data folder."""
        return Path(self.data.processor) if self.data.processor else (self.data_folders or [Path()])[0] / "processor"
