"""The section `data` of a run: what is trained and validated on, and how samples become rows."""

from dataclasses import dataclass, field

MIXTURE_SUFFIXES = (".yaml", ".yml")
"""Of a `data.path` that mixes several data folders."""


@dataclass(kw_only=True, slots=True)
class DataSection:
    """What is trained on and how samples become rows."""

    path: str = ""
    """Data folder that `medx data build` wrote, or a YAML file that mixes several (see `data/plan/mixture.py`)."""
    validation_path: str = ""
    """The same of samples that are not trained on: of a build with `--splits train=0.98,val=0.02` the folder `OUT/val`.

    Shortened and packed like the training data, in an order that no field of the run changes.
    """
    validation_sets: dict[str, str] = field(default_factory=dict)
    """More of these by name, each validated apart: `data.validation_sets.NAME=PATH`; validation_path is `validation`.

    A name has letters, digits, `-` and `_`; it is how metrics, curves and trackers call the set.
    """
    processor: str = ""
    """Hugging Face directory with tokenizer, chat template, image processor; its tokenizer is that of the build.

    Empty means `processor` in the data folder, of a mixture in the first one.
    """
    packing: bool = False
    """True: fill every row with as many samples as fit. False: one sample a row.

    Attention and positions restart per sample either way.
    """
    seq_len_tokens: int = 4096
    """Longest row, in text and image tokens. Longer samples lose slices, then resolution; text is never cut."""
    max_row_patches: int = 0
    """Most patches of all images of a row, before merging (4 to a token); 0 means no other limit than the tokens."""
    min_pixels: int = 65536
    """Images are scaled up to at least this area (width x height, px)."""
    max_pixels: int = 16777216
    """Images are scaled down to at most this area (width x height, px)."""
    sample_align_tokens: int = 1
    """Each sample is padded to a multiple of so many tokens inside its row.

    Context parallelism cuts every sample into 2 x parallel.context equal pieces and needs a multiple of that. It is a
    number of the run, not of the grid, so that rows hold the same samples whatever the grid.
    """
    max_bad_fraction: float = 0.0
    """Largest share of samples that may be unusable: rejected by the build, too long for a row, or damaged since.

    Each is named in a `rejects.jsonl`, of the data folder or of the run. 0 stops at the first.
    """
    decoder: str = "pillow"
    """What decodes and scales images: `pillow`, the reference, or `dali` (optional; on the GPU where there is one)."""
    num_workers: int = 0
    """Processes of each rank that read and decode rows; with 0 a thread of the rank does it."""
    prefetch_rows: int = 2
    """Rows that are read ahead of the step, at least 1."""
