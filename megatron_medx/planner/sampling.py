"""Rows of a run's data folders, from a bounded number of their samples: real lengths, image sizes and packing.

Comes in: index.parquet of each source and the mixture. Goes out: up to 256 rows. They are not the rows of the run,
which a plan of the whole index decides, but made by the same rules of shortening and joining from samples of all over
it.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from megatron_medx.config.run import RunConfig
from megatron_medx.data.index import INDEX_FILE
from megatron_medx.data.plan.budget import Fitted, ImageExtent
from megatron_medx.data.plan.mixture import MixtureSource, read_mixture
from megatron_medx.data.plan.packing import join
from megatron_medx.data.plan.row_plan import aligned_tokens
from megatron_medx.data.plan.stream import seeded_order
from megatron_medx.data.plan.table import TableSettings
from megatron_medx.errors import DataError
from megatron_medx.planner.workload import Row, Workload

MOST_ROWS = 256
"""Rows that are made; their mean cost is within some percent of that of all."""

MOST_SAMPLES, MOST_IMAGES = 6144, 36_000
"""Samples of all sources that are read, and about how many images of theirs: volumes have hundreds."""

GROUPS = 12
"""Places at equal distances in an index from which neighbors are read."""

COLUMNS = ("text_tokens", "image_widths", "image_heights", "image_spans")


def sampled_workload(config: RunConfig) -> Workload:
    """Rows made of samples of the run's data folders, in the mixture's shares over the whole run.

    Raises:
        DataError: the mixture or an index is not sound, or a source has no sample that fits a row.
    """
    data, mixture = config.data, read_mixture(Path(config.data.path))
    settings = TableSettings.of_run(config)
    found = [_read(source.path, settings, len(mixture)) for source in mixture]
    for source, (samples, _) in zip(mixture, found, strict=True):
        if not samples:
            raise DataError(
                f"{source.path}: no sample that fits a row of {data.seq_len_tokens} tokens",
                "at least one",
                "raise data.seq_len_tokens or data.max_row_patches, or build the folder again",
            )
    samples = _mixed(config, mixture, found)
    rows = _rows(config, samples, settings)
    num_read, num_all = sum(len(of_source) for of_source, _ in found), sum(count for _, count in found)
    source = (
        f"{len(rows):,} rows of {len(samples):,} samples from {config.data.path} ({num_read:,} of {num_all:,} read)"
    )
    return Workload(tuple(rows), source, is_assumed=False)


def _read(folder: Path, settings: TableSettings, num_sources: int) -> tuple[list[Fitted], int]:
    """Shortened samples from all over an index, and how many it has in all."""
    if not (Path(folder) / INDEX_FILE).is_file():
        raise DataError(f"no {Path(folder) / INDEX_FILE}", "a data folder that is whole", "build the folder again")
    index = pq.ParquetFile(Path(folder) / INDEX_FILE)
    groups = index.num_row_groups
    places = sorted({number * groups // GROUPS for number in range(GROUPS)}) if groups else []
    samples = []
    for group in places:
        share = len(places) * num_sources
        batches = index.iter_batches(-(-MOST_SAMPLES // share), row_groups=[group], columns=list(COLUMNS))
        num_images = 0
        for values in next(batches).to_pylist():
            num_images += len(values["image_widths"])
            if fitted := _fitted(values, settings):
                samples.append(fitted)
            if num_images > MOST_IMAGES / share:
                break
    return samples, index.metadata.num_rows


def _fitted(values: dict, settings: TableSettings) -> Fitted | None:
    """A sample of the index, shortened as a run does; None where no rule fits it into a row."""
    extents = zip(values["image_widths"], values["image_heights"], values["image_spans"], strict=True)
    try:
        fitted = settings.fit(values["text_tokens"], [ImageExtent(*extent) for extent in extents])
    except DataError:
        return None  # an image too long and thin: the run counts it among its rejects and goes on without it
    return fitted if fitted and fitted.tokens > 0 else None


def _mixed(
    config: RunConfig, mixture: tuple[MixtureSource, ...], found: list[tuple[list[Fitted], int]]
) -> list[Fitted]:
    """Samples of all sources in their shares of tokens, none twice: as many as the scarcest source allows."""
    held = [sum(sample.tokens for sample in samples) for samples, _ in found]
    if mixture[0].weight is None:
        shares = [count * tokens / len(samples) for (samples, count), tokens in zip(found, held, strict=True)]
    else:
        end = config.training.steps * config.tokens_per_step
        shares = [float(source.weight_between(0, end)) for source in mixture]
    shares = [share / sum(shares) for share in shares]
    tokens = min(held[number] / share for number, share in enumerate(shares) if share)
    tokens = min(tokens, MOST_ROWS * config.data.seq_len_tokens)
    chosen = []
    for number, ((samples, _), share) in enumerate(zip(found, shares, strict=True)):
        taken = 0
        for place in seeded_order(len(samples), config.run.seed, number).tolist():
            if taken >= share * tokens:
                break
            taken += samples[place].tokens
            chosen.append(samples[place])
    order = seeded_order(len(chosen), config.run.seed, len(mixture))
    return [chosen[place] for place in order.tolist()]


def _rows(config: RunConfig, samples: list[Fitted], settings: TableSettings) -> list[Row]:
    data = config.data
    tokens = np.array([sample.tokens for sample in samples])
    aligned = aligned_tokens(tokens, data.sample_align_tokens)
    if data.packing:
        patches = np.array([sample.patches for sample in samples])
        numbers = join(aligned, patches, data.seq_len_tokens, settings.max_row_patches).tolist()
    else:
        numbers = list(range(min(len(samples), MOST_ROWS)))
    members: dict[int, list[int]] = {}
    for sample, number in enumerate(numbers):
        members.setdefault(number, []).append(sample)
    ranks = config.parallel.tensor * config.parallel.context
    rows = []
    for of_row in members.values():
        segments = [int(aligned[sample]) for sample in of_row]
        length = data.seq_len_tokens if data.packing else aligned_tokens(sum(segments), ranks)
        segments += [length - sum(segments)] if length > sum(segments) else []
        images = [rows * columns for sample in of_row for _, rows, columns in samples[sample].grids]
        rows.append(Row(tuple(samples[sample].tokens for sample in of_row), tuple(images), tuple(segments)))
    return rows
