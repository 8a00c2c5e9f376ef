"""The index as a table of records of one size, which every rank maps into memory.

Comes in: index.parquet and what the run sets about lengths. Goes out: an .npy file with a `TABLE` record for each
sample, in the order of the index: what the plan packs by, what rows are dealt by, and where the bytes lie. The index is
streamed, so that memory does not grow with it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_medx.config.flops import FlopsPolynomial, flops_polynomial
from megatron_medx.config.run import RunConfig
from megatron_medx.data.image_grid import MAX_ASPECT
from megatron_medx.data.index import INDEX_FILE
from megatron_medx.data.plan.budget import Fitted, ImageExtent, fit
from megatron_medx.data.plan.row_plan import aligned_tokens
from megatron_medx.errors import DataError

TABLE = np.dtype(
    [
        ("tokens", "<i4"),  # of the shortened sample; 0 marks one that no rule fits into a row
        ("patches", "<i4"),  # of all its images, before merging
        ("cost", "<f4"),  # FLOPs, forward and backward, of its aligned segment and its images
        ("shard", "<i4"),  # number in the manifest's list
        ("offset", "<i8"),  # first byte in the shard
        ("size", "<i8"),  # bytes
        ("hash", "<u8"),  # first 8 bytes of their SHA-256
    ]
)
"""One sample."""

BATCH_SAMPLES = 8192
"""Rows of the index in memory at a time: if all were volumes of 300 slices, 300 MB."""

COLUMNS = ("id", "shard", "offset", "size", "sha256", "text_tokens", "image_widths", "image_heights", "image_spans")


@dataclass(frozen=True, slots=True)
class TableSettings:
    """What decides a sample's length and cost."""

    seq_len_tokens: int
    sample_align_tokens: int
    max_row_patches: int
    """0 means no limit."""
    min_pixels: int
    max_pixels: int
    patch_size: int
    merge_size: int
    flops: FlopsPolynomial

    @classmethod
    def of_run(cls, config: RunConfig) -> "TableSettings":
        """What a run's configuration decides."""
        data, vision = config.data, config.model.vision
        return cls(
            seq_len_tokens=data.seq_len_tokens,
            sample_align_tokens=data.sample_align_tokens,
            max_row_patches=data.max_row_patches,
            min_pixels=data.min_pixels,
            max_pixels=data.max_pixels,
            patch_size=vision.patch_size,
            merge_size=vision.merge_size,
            flops=flops_polynomial(config.model, config.training.freeze),
        )

    @property
    def limit_tokens(self) -> int:
        """Longest sample: its length, rounded up to the alignment, is within a row."""
        return self.seq_len_tokens // self.sample_align_tokens * self.sample_align_tokens

    def fit(self, text_tokens: int, images: list[ImageExtent]) -> Fitted | None:
        """`budget.fit` with these settings."""
        return fit(
            text_tokens,
            images,
            self.limit_tokens,
            self.min_pixels,
            self.max_pixels,
            self.patch_size,
            self.merge_size,
            self.max_row_patches,
        )


@dataclass(slots=True)
class TableSummary:
    """What became of the samples of one index."""

    num_samples: int = 0
    num_tokens: int = 0
    """Of the samples that are trained on, text and images, without padding."""
    num_thinned: int = 0
    """Samples that lost slices."""
    num_scaled: int = 0
    """Samples whose images lost resolution."""
    num_rejected: int = 0
    """Samples that no rule fits into a row."""


def write_table(folder: Path, out: Path, settings: TableSettings, rejects: TextIO | None = None) -> TableSummary:
    """Write the table of a data folder.

    Args:
        folder: with an index.
        out: .npy file.
        settings: of the run.
        rejects: takes a JSON line (id, file, reason, found) for each sample that no rule fits into a row.

    Returns:
        counts; samples that are shortened are counted, never dropped.
    """
    index = pq.ParquetFile(Path(folder) / INDEX_FILE)
    count = index.metadata.num_rows
    if not count:
        raise DataError(f"{Path(folder) / INDEX_FILE} has no samples", "at least one", "build the folder again")
    draft = out.with_suffix(".tmp")
    table = np.lib.format.open_memmap(draft, mode="w+", dtype=TABLE, shape=(count,))
    summary = TableSummary(num_samples=count)
    start = 0
    for batch in index.iter_batches(BATCH_SAMPLES, columns=list(COLUMNS)):
        records = table[start : start + len(batch)]
        start += len(batch)
        for name in ("shard", "offset", "size"):
            records[name] = batch.column(name).to_numpy()
        records["hash"] = _hashes(batch.column("sha256"))
        for found in _measure(batch, records, settings, summary):
            if rejects is not None:
                rejects.write(json.dumps(found | {"file": str(folder)}, ensure_ascii=False) + "\n")
    table.flush()
    del table
    draft.replace(out)
    return summary


def open_table(path: Path) -> np.ndarray:
    """(samples,) `TABLE` records, mapped read-only.

    Raises:
        DataError: there is no such table, or it is of another layout.
    """
    if not Path(path).is_file():
        raise DataError(f"no table {path}", "the tables that the launch writes", "start the run again")
    table = np.load(path, mmap_mode="r")
    if table.dtype != TABLE:
        raise DataError(f"{path} holds {table.dtype}", f"{TABLE}", "start the run again: the launch writes it anew")
    return table


def resized(heights: np.ndarray, widths: np.ndarray, factor: int, min_pixels: int, max_pixels: int) -> np.ndarray:
    """(images,) tokens of many images at once, as `image_grid.smart_resize` has them; 0 where it refuses the shape.

    Every operation is the same one on the same float64, in the same order: so the result is equal, not only close.
    """
    heights, widths = heights.astype(np.int64), widths.astype(np.int64)
    shorter, longer = np.minimum(heights, widths), np.maximum(heights, widths)
    sound = (shorter >= 1) & (longer / np.maximum(shorter, 1) <= MAX_ASPECT)
    heights, widths = np.where(sound, heights, factor), np.where(sound, widths, factor)
    tall, wide = (np.rint(side / factor) * factor for side in (heights, widths))
    area, before = tall * wide, heights * widths
    shrink, grow = np.sqrt(before / max_pixels), np.sqrt(min_pixels / before)
    large, small = area > max_pixels, area < min_pixels
    sides = []
    for rounded, side in ((tall, heights), (wide, widths)):
        shrunk = np.maximum(factor, np.floor(side / shrink / factor) * factor)
        grown = np.ceil(side * grow / factor) * factor
        sides.append(np.where(large, shrunk, np.where(small, grown, rounded)).astype(np.int64) // factor)
    return np.where(sound, sides[0] * sides[1], 0)


def _measure(
    batch: pa.RecordBatch, records: np.ndarray, settings: TableSettings, summary: TableSummary
) -> Iterator[dict]:
    """Fill in tokens, patches and costs; yields id, reason and what was found of each sample that fits no row."""
    count = len(batch)
    widths, heights = (batch.column(name).flatten().to_numpy() for name in ("image_widths", "image_heights"))
    num_images = batch.column("image_widths").value_lengths().to_numpy()
    owners = np.repeat(np.arange(count), num_images)
    factor = settings.patch_size * settings.merge_size
    of_images = resized(heights, widths, factor, min(settings.min_pixels, settings.max_pixels), settings.max_pixels)
    patches_of_images = of_images * settings.merge_size**2
    # float64 sums of integers below 2^53: exact
    patches = np.bincount(owners, patches_of_images, count)
    squares = np.bincount(owners, patches_of_images.astype(np.float64) ** 2, count)
    tokens = batch.column("text_tokens").to_numpy().astype(np.int64) - num_images
    tokens += np.bincount(owners, of_images, count).astype(np.int64)
    fits = (tokens > 0) & (tokens <= settings.limit_tokens)
    if settings.max_row_patches:
        fits &= patches <= settings.max_row_patches
    fits[owners[of_images == 0]] = False
    for row in np.flatnonzero(~fits).tolist():
        fitted, found = _shortened(batch.slice(row, 1), settings, summary)
        grids = [frames * tall * wide for frames, tall, wide in fitted.grids] if fitted else []
        tokens[row], patches[row] = (fitted.tokens if fitted else 0), sum(grids)
        squares[row] = sum(of_image**2 for of_image in grids)
        if fitted is None:
            summary.num_rejected += 1
            yield found
    aligned = aligned_tokens(tokens, settings.sample_align_tokens).astype(np.float64)
    flops = settings.flops
    records["tokens"], records["patches"] = tokens, patches
    records["cost"] = (
        flops.tokens * aligned
        + flops.tokens_squared * aligned**2
        + flops.patches * patches
        + flops.patches_squared * squares
    )
    summary.num_tokens += int(tokens.sum())


def _shortened(row: pa.RecordBatch, settings: TableSettings, summary: TableSummary) -> tuple[Fitted | None, dict]:
    """What the rule leaves of one sample of the index, counted; if nothing, what to say about it."""
    values = row.to_pylist()[0]
    if values["text_tokens"] < 1:
        return None, {"id": values["id"], "reason": "no tokens", "found": "0 tokens"}
    images = [
        ImageExtent(*extent)
        for extent in zip(values["image_widths"], values["image_heights"], values["image_spans"], strict=True)
    ]
    try:
        fitted = settings.fit(values["text_tokens"], images)
    except DataError as error:
        return None, {"id": values["id"], "reason": "too long and thin", "found": error.found}
    if fitted is None:
        found = f"{values['text_tokens']} tokens and {len(images)} images, a row has {settings.limit_tokens} tokens"
        if settings.max_row_patches:
            found += f" and {settings.max_row_patches} patches"
        return None, {"id": values["id"], "reason": "too long for a row", "found": found}
    summary.num_thinned += len(fitted.kept) < len(images)
    summary.num_scaled += fitted.grids != _grids_at_full_size(images, fitted, settings)
    return fitted, {}


def _grids_at_full_size(
    images: list[ImageExtent], fitted: Fitted, settings: TableSettings
) -> tuple[tuple[int, int, int], ...]:
    """Grids that the images that stay would have in an endless row."""
    endless = 2**62
    kept = [images[number] for number in fitted.kept]
    pixels = settings.min_pixels, settings.max_pixels
    return fit(0, kept, endless, *pixels, settings.patch_size, settings.merge_size).grids


def _hashes(column: pa.Array) -> np.ndarray:
    """(rows,) first 8 bytes of each SHA-256 as a number, little-endian."""
    content = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    content = content[column.offset * 32 : (column.offset + len(column)) * 32]
    return content.reshape(-1, 32)[:, :8].copy().view("<u8")[:, 0]
