"""What one process does before the ranks start: check the data, write their tables, tell what the order hangs on.

Comes in: a RunConfig. Goes out, in a folder that all ranks see:

    0.npy, 1.npy, ...   the table of each source (table.py)
    rejects.jsonl       samples that no rule fits into a row: id, file, reason, found
    plan.json           `fingerprint` of the order of data, the `pieces` it is made of, and `counts`
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megatron_medx.config.processor import check_processor
from megatron_medx.config.run import RunConfig
from megatron_medx.data.index import INDEX_FILE, REJECTS_FILE, Manifest, file_sha256, tokenizer_fingerprint
from megatron_medx.data.plan.mixture import MixtureSource, read_mixture
from megatron_medx.data.plan.row_plan import plan_rows
from megatron_medx.data.plan.table import TableSettings, TableSummary, open_table, write_table
from megatron_medx.errors import ConfigError, DataError

PLAN_FILE = "plan.json"

ORDER = 1
"""Version of the rules of shortening, order and packing: a run that began under another one cannot go on."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the ranks find."""

    folder: Path
    mixture: tuple[MixtureSource, ...]
    summaries: tuple[TableSummary, ...]
    """Of each source."""
    num_rejected: int
    """Samples that the builds or a row's length left out."""
    fingerprint: str
    """SHA-256 of the pieces: two runs with the same one see the same rows."""
    pieces: dict[str, object]
    """What the order of data hangs on, by name."""


def prepare_data(config: RunConfig, folder: Path) -> Prepared:
    """Check the data of a run and write what its ranks need.

    Args:
        config: sections run (seed), data, model and training (frozen parts) are read.
        folder: is made; what an earlier launch wrote there is replaced.

    Raises:
        ConfigError: data.path is not set, or a limit is smaller than one image.
        DataError: the mixture is not sound, a folder is not what its manifest says or was built with another tokenizer,
            or more than `data.max_bad_fraction` of the samples are left out.
    """
    data = config.data
    if not data.path:
        raise ConfigError("data.path is not set", "a data folder", "add data.path=FOLDER; `make demo` builds one")
    mixture = read_mixture(Path(data.path))
    settings = TableSettings.of_run(config)
    _check_limits(settings)
    check_processor(config.processor_folder)
    manifests = [Manifest.read(source.path) for source in mixture]
    for source, manifest in zip(mixture, manifests, strict=True):
        _check_folder(source.path, manifest, config.processor_folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / REJECTS_FILE, "w", encoding="utf-8") as rejects:
        summaries = tuple(
            write_table(source.path, folder / f"{number}.npy", settings, rejects)
            for number, source in enumerate(mixture)
        )
    num_rejected = _check_rejects(config, mixture, manifests, summaries, folder)
    pieces = _pieces(config, mixture, manifests)
    fingerprint = hashlib.sha256(json.dumps(pieces, sort_keys=True).encode()).hexdigest()
    counts = {str(source.path): asdict(summary) for source, summary in zip(mixture, summaries, strict=True)}
    content = {"fingerprint": fingerprint, "pieces": pieces, "counts": counts}
    (folder / PLAN_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return Prepared(folder, mixture, summaries, num_rejected, fingerprint, pieces)


def check_enough(config: RunConfig, prepared: Prepared, num_skipped_rows: int = 0) -> None:
    """Refuse a run that is longer than the epoch limits of its sources allow.

    Args:
        config: the run.
        prepared: its data.
        num_skipped_rows: rows that it leaves out, and so needs beside those it trains.

    Raises:
        DataError: with the rows that there are.
    """
    if any(source.max_epochs is not None for source in prepared.mixture):
        plan = plan_rows(config, *open_prepared(config, prepared.folder))
        plan.check_enough(config.training.steps * config.training.global_batch_rows + num_skipped_rows)


def open_prepared(config: RunConfig, folder: Path) -> tuple[list[np.ndarray], tuple[MixtureSource, ...]]:
    """Tables, mapped into memory, and the sources they belong to, as `prepare_data` left them.

    Raises:
        DataError: a table is missing.
    """
    mixture = read_mixture(Path(config.data.path))
    return [open_table(folder / f"{number}.npy") for number in range(len(mixture))], mixture


def compare_plans(former: dict, now: dict) -> list[str]:
    """What differs between the pieces of two plans, one sentence each; nothing if their rows are the same.

    Example: `data.seq_len_tokens was 512 and is 1024`.
    """
    return [
        f"{name} was {former.get(name, 'not there')} and is {now.get(name, 'not there')}"
        for name in [*former, *(name for name in now if name not in former)]
        if former.get(name) != now.get(name)
    ]


def _check_limits(settings: TableSettings) -> None:
    """A limit that no image can keep is a slip of the pen."""
    patches = settings.merge_size**2
    pixels = patches * settings.patch_size**2
    for name, found, needed, unit in (
        ("data.seq_len_tokens", settings.limit_tokens, 1, "tokens (rounded down to data.sample_align_tokens)"),
        ("data.max_row_patches", settings.max_row_patches or patches, patches, "patches"),
        ("data.max_pixels", settings.max_pixels, pixels, "px"),
    ):
        if found < needed:
            raise ConfigError(
                f"{name} allows {found} {unit}", f"at least {needed}, an image of one token", f"raise {name}"
            )


def _check_folder(folder: Path, manifest: Manifest, processor: Path) -> None:
    """Raises DataError where files are not those that the manifest was written for."""
    again = "restore the folder as `medx data build` wrote it, or build it again"
    index = folder / INDEX_FILE
    if not index.is_file():
        raise DataError(f"no file {index}", f"the one with SHA-256 {manifest.index_sha256}", again)
    found = file_sha256(index)
    if found != manifest.index_sha256:
        raise DataError(f"{index} has SHA-256 {found}", f"{manifest.index_sha256}, as the manifest says", again)
    for shard in manifest.shards:
        path = folder / shard.name
        if not path.is_file():
            raise DataError(f"no file {path}", f"a shard of {shard.bytes} bytes", again)
        if path.stat().st_size != shard.bytes:
            raise DataError(
                f"{path} has {path.stat().st_size} bytes", f"{shard.bytes} bytes, as the manifest says", again
            )
    tokenizer = tokenizer_fingerprint(processor)
    if tokenizer != manifest.tokenizer:
        raise DataError(
            f"the tokenizer and chat template of {processor} have fingerprint {tokenizer}",
            f"{manifest.tokenizer}, with which the lengths in {folder} were measured",
            f"set data.processor to the processor of the build, or build {folder} again with this one",
        )


def _check_rejects(
    config: RunConfig,
    mixture: tuple[MixtureSource, ...],
    manifests: list[Manifest],
    summaries: tuple[TableSummary, ...],
    folder: Path,
) -> int:
    """Samples left out by builds and by this run; raises DataError when they are too many."""
    by_builds = sum(manifest.num_rejected for manifest in manifests)
    too_long = sum(summary.num_rejected for summary in summaries)
    num_all = by_builds + sum(summary.num_samples for summary in summaries)
    if by_builds + too_long > config.data.max_bad_fraction * num_all:
        files = [
            str(source.path / REJECTS_FILE)
            for source, manifest in zip(mixture, manifests, strict=True)
            if manifest.num_rejected
        ]
        named = ", ".join(files + ([str(folder / REJECTS_FILE)] if too_long else []))
        raise DataError(
            f"{by_builds} samples rejected by the build and {too_long} that fit no row, of {num_all}: "
            f"{(by_builds + too_long) / num_all:.3%}; see {named}",
            f"at most data.max_bad_fraction = {config.data.max_bad_fraction:g} of them",
            "mend the samples and build again, raise data.seq_len_tokens, or raise data.max_bad_fraction",
        )
    return by_builds + too_long


def _pieces(config: RunConfig, mixture: tuple[MixtureSource, ...], manifests: list[Manifest]) -> dict[str, object]:
    """Everything that a row's samples hang on, by the name that a message calls it; where folders lie is not of it."""
    data, vision = config.data, config.model.vision
    pieces: dict[str, object] = {"order": ORDER, "run.seed": config.run.seed}
    for name in (
        "seq_len_tokens",
        "packing",
        "sample_align_tokens",
        "min_pixels",
        "max_pixels",
        "max_row_patches",
    ):
        pieces[f"data.{name}"] = getattr(data, name)
    pieces["model.vision.patch_size"], pieces["model.vision.merge_size"] = vision.patch_size, vision.merge_size
    pieces["sources"] = len(mixture)
    for number, (source, manifest) in enumerate(zip(mixture, manifests, strict=True)):
        knots = None if source.weight is None else [list(knot) for knot in source.weight]
        pieces[f"source {number}: index SHA-256"] = manifest.index_sha256
        pieces[f"source {number}: weight"] = knots
        pieces[f"source {number}: max_epochs"] = source.max_epochs
    return pieces
