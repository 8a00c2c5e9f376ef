"""What the rows of a step hold: samples and images, from the data folder if there is one, else by a stated assumption.

Comes in: a RunConfig. Goes out: a `Workload`, some rows that stand for all. Reading data folders is `sampling.py`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from megatron_medx.config.flops import step_flops
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.run import RunConfig
from megatron_medx.data.image_grid import smart_resize


@dataclass(frozen=True)
class Row:
    """One packed row, as far as its cost goes."""

    samples: tuple[int, ...]
    """Tokens of each sample, image tokens included, padding not."""
    images: tuple[int, ...]
    """Patches of each image before merging."""
    segments: tuple[int, ...]
    """What is computed: samples with their alignment, and the row's tail."""

    @cached_property
    def load(self) -> "Load":
        """The sums that its time hangs on."""
        return Load(
            slots=sum(self.segments),
            squares=sum(tokens * tokens for tokens in self.segments),
            patches=sum(self.images),
            patch_squares=sum(patches * patches for patches in self.images),
            largest_image=max(self.images, default=0),
        )


@dataclass(frozen=True, slots=True)
class Load:
    """What a row asks for, in sums, so that the mean of rows is a row as well."""

    slots: float
    """Token slots, padding included."""
    squares: float
    """Sum over its segments of tokens squared."""
    patches: float
    patch_squares: float
    """Sum over its images of patches squared."""
    largest_image: float
    """Patches of the largest image: a rank encodes images whole."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """What rows are taken to hold where no data folder tells."""

    image_share: float = 0.5
    """Share of a row's tokens that images give."""
    image_side_px: int = 1024
    """Every image is a square of this side, scaled into `data.min_pixels` to `data.max_pixels`."""
    sample_tokens: int = 2048
    """Tokens of every sample, at most a row."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows that stand for those of the run."""

    rows: tuple[Row, ...]
    source: str
    """Where they come from, in words."""
    is_assumed: bool

    @property
    def mean(self) -> Load:
        """The mean row; its largest image is the mean of the rows' largest."""
        loads, count = [row.load for row in self.rows], len(self.rows)
        return Load(*(sum(getattr(load, name) for load in loads) / count for name in Load.__slots__))

    @property
    def fill(self) -> float:
        """Share of the token slots that hold a sample's token."""
        return sum(sum(row.samples) for row in self.rows) / sum(row.load.slots for row in self.rows)

    def image_share(self, model: ModelConfig) -> float:
        """Share of the samples' tokens that images give."""
        patches = sum(row.load.patches for row in self.rows)
        return patches / model.vision.merge_size**2 / sum(sum(row.samples) for row in self.rows)

    def rows_of_step(self, num_rows: int) -> list[Row]:
        """So many rows, the known ones in turn."""
        return [self.rows[number % len(self.rows)] for number in range(num_rows)]

    def step_flops(self, config: RunConfig) -> dict[str, float]:
        """Model FLOPs of a step by part, forward and backward, and `total`; padding is not counted."""
        sums: dict[str, float] = {}
        scale = config.training.global_batch_rows / len(self.rows)
        for row in self.rows:
            of_row = step_flops(config.model, row.samples, row.images, config.training.freeze)
            for piece, flops in of_row.items():
                sums[piece] = sums.get(piece, 0) + flops * scale
        return sums


def assumed_workload(config: RunConfig, assumption: Assumption) -> Workload:
    """One row that holds what the assumption says, as nearly as whole images and samples allow.

    Example (8,192 slots, the defaults, 32 px a token side): 4 samples of 2,048 tokens; 1,024 x 1,024 px are 1,024
    tokens, so 4 images give half of the row, 4,096 patches each.
    """
    data, vision = config.data, config.model.vision
    longest = data.seq_len_tokens // data.sample_align_tokens * data.sample_align_tokens
    sample = min(longest, -(-assumption.sample_tokens // data.sample_align_tokens) * data.sample_align_tokens)
    slots = data.seq_len_tokens if data.packing else sample
    samples = (sample,) * (slots // sample)
    tail = slots - sum(samples)
    side = assumption.image_side_px
    tall, wide = smart_resize(side, side, vision.token_side_px, min(data.min_pixels, data.max_pixels), data.max_pixels)
    wanted = assumption.image_share * sum(samples)
    tokens = min(tall * wide // vision.token_side_px**2, int(wanted))
    images = round(wanted / tokens) if tokens else 0
    words = f"assumed: samples of {sample:,} tokens"
    words += (
        f", {images * tokens / sum(samples):.0%} of them from images of {tokens:,} tokens" if images else ", no images"
    )
    row = Row(samples, (tokens * vision.merge_size**2,) * images, samples + ((tail,) if tail else ()))
    return Workload((row,), words, is_assumed=True)


def run_workload(config: RunConfig, assumption: Assumption | None = None) -> Workload:
    """Rows of the run's data folders if all of them are there; else, or if an assumption is given, assumed ones.

    Raises:
        DataError: the mixture or a data folder is there and not sound, or holds no sample that fits a row.
    """
    if assumption is not None or not config.data.path or not _is_there(config.data_folders):
        return assumed_workload(config, assumption or Assumption())
    from megatron_medx.planner.sampling import sampled_workload  # pyarrow: what has no data folder does without

    return sampled_workload(config)


def _is_there(folders: Sequence) -> bool:
    return bool(folders) and all((folder / "manifest.json").is_file() for folder in folders)
