"""The run folder: which one a run gets, what lies in it before training starts, and what a resume must not change.

What else lies there: run_folder/names.py.
torch is not imported here.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_medx.checkpoint.writing.progress import byte_progress
from megatron_medx.config.checkpoint_folders import CHECKPOINTS, METADATA_FILE, RUN_FILE, TRACKER_FILE
from megatron_medx.config.files import collect_provenance, read_run_yaml, write_run_yaml
from megatron_medx.config.processor import PROCESSOR_FOLDER, copy_processor
from megatron_medx.config.run import RunConfig
from megatron_medx.data.plan.prepare import PLAN_FILE, Prepared, check_enough, compare_plans, prepare_data
from megatron_medx.data.plan.validation import VALIDATION_TABLES, prepare_validation
from megatron_medx.errors import CheckpointError, ConfigError
from megatron_medx.run_folder import events
from megatron_medx.run_folder.integrity import DAMAGED, newest_sound, steps_on_disk, tracked_step
from megatron_medx.run_folder.names import DATA, ERROR_FILE, LOGS
from megatron_medx.run_folder.skipped_rows import merged, num_skipped, read_skips
from megatron_medx.terminal import complain, say
from megatron_medx.training.interruption import FAILURE_MARK
from megatron_medx.training.start import check_same_network, prepare_start
from megatron_medx.training.watchdog import HANG_MARK


def prepare_folder(config: RunConfig, resume: bool, command: list[str], re_enter: bool = False) -> Path:
    """Choose and fill the run folder; `config.run.folder` is set to it, `start_from` to the one checkpoint meant.

    Nothing that was saved is overwritten: a new run never enters a folder that holds one.

    Args:
        config: the run.
        resume: the folder holds a run that goes on.
        command: what was typed, for the record.
        re_enter: a new run may enter the folder of the same one, which has saved nothing yet; whether it is the same
            the caller has judged (run_folder/same_run.py).

    Raises:
        ConfigError: a new run would enter an old one's folder, or a resume changes the order of data.
        CheckpointError: there is nothing to resume or to start from, or it is another network's.
        DataError: the processor directory is not whole, or the data are not what was built.
    """
    folder = choose_folder(config, resume or re_enter)
    checkpoints = folder / CHECKPOINTS
    if resume:
        check_resume(config, checkpoints)
    plan = prepare_data(config, folder / DATA)
    check_enough(config, plan, num_skipped(merged(read_skips(checkpoints))))
    if config.training.validate_every_steps:
        prepare_validation(config, folder / DATA / VALIDATION_TABLES, checkpoints, resume)
    if resume:
        check_order(plan, checkpoints)
        config.checkpoint.start_from = read_run_yaml(checkpoints / RUN_FILE).checkpoint.start_from  # as it was
    elif config.checkpoint.start_from:
        prepare_start(config, folder)
    if re_enter and not resume:
        newest_sound(checkpoints, complain)  # there is none; a first save that was cut off gets out of the way
    checkpoints.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / DATA / PLAN_FILE, checkpoints / PLAN_FILE)
    config.run.folder = str(folder)
    provenance = collect_provenance(command)
    for place in (folder, checkpoints):
        write_run_yaml(config, place / RUN_FILE, provenance)
    limits = {"min_pixels": config.data.min_pixels, "max_pixels": config.data.max_pixels}
    copy_processor(config.processor_folder, checkpoints / PROCESSOR_FOLDER, **limits)
    (folder / LOGS).mkdir(exist_ok=True)
    for mark in (ERROR_FILE, HANG_MARK, FAILURE_MARK):
        (folder / LOGS / mark).unlink(missing_ok=True)
    return folder


def announce(config: RunConfig, folder: Path, resume: bool, hosts: list[str]) -> None:
    """Say and record that ranks start in a prepared folder.

    Args:
        hosts: names of those that the ranks run on.
    """
    say(f"run folder  {folder}{' (resumed)' if resume else ''}")
    resumed_from = tracked_step(folder / CHECKPOINTS) if resume else None
    events.append(folder, "launched", ranks=config.parallel.world_size, hosts=hosts, resumed_from=resumed_from)


def choose_folder(config: RunConfig, resume: bool) -> Path:
    """The folder of a run that goes on, or of a new one.

    Raises:
        ConfigError: a new run would enter an old one's folder.
    """
    return resumed_folder(config) if resume else new_folder(config)


def holds_checkpoint(config: RunConfig) -> bool:
    """Whether the run in its folder has saved anything that it could go on from, or should refuse to go on without."""
    checkpoints = resumed_folder(config) / CHECKPOINTS
    whole = any(checkpoints.glob(f"iter_*/{METADATA_FILE}"))
    return whole or (checkpoints / TRACKER_FILE).exists() or any(checkpoints.glob(f"{DAMAGED}*"))


def new_folder(config: RunConfig) -> Path:
    """`run.folder`, or the first free one of runs/<recipe>, runs/<recipe>-2, runs/<recipe>-3, ..."""
    if not config.run.folder:
        return next(folder for folder in numbered_folders(config) if not (folder / RUN_FILE).exists())
    if (config.run_folder / RUN_FILE).exists():
        raise ConfigError(
            f"run.folder={config.run_folder} already holds a run",
            "a folder of its own for a new run",
            "add --resume to continue it, or choose another run.folder",
        )
    return config.run_folder


def resumed_folder(config: RunConfig) -> Path:
    """`run.folder`, or the newest of runs/<recipe>, runs/<recipe>-2, ... that holds a run."""
    if config.run.folder:
        return config.run_folder
    held = list(itertools.takewhile(lambda folder: (folder / RUN_FILE).exists(), numbered_folders(config)))
    return held[-1] if held else config.run_folder


def numbered_folders(config: RunConfig) -> Iterator[Path]:
    """runs/<recipe>, runs/<recipe>-2, runs/<recipe>-3, ..."""
    first = config.run_folder
    yield first
    yield from (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))


def check_resume(config: RunConfig, checkpoints: Path) -> None:
    """Refuse to resume into another network or without a checkpoint; the tracker then names the newest sound one."""
    if steps_on_disk(checkpoints):
        check_same_network(config.model, checkpoints)
    if newest_sound(checkpoints, complain, checksums=config.checkpoint.checksums, progress=byte_progress) is None:
        raise CheckpointError(
            f"{checkpoints} has no complete checkpoint",
            "a checkpoint to resume from",
            "start without --resume, in a new run.folder if this one is taken",
        )


def check_order(plan: Prepared, checkpoints: Path) -> None:
    """Refuse to resume into another order of data: other samples, mixture, seed or lengths."""
    if not (checkpoints / PLAN_FILE).is_file():
        raise CheckpointError(
            f"no file {checkpoints / PLAN_FILE}",
            "what the order of data hung on when the checkpoint was written",
            f"start a new run with checkpoint.start_from={checkpoints}",
        )
    former = json.loads((checkpoints / PLAN_FILE).read_text(encoding="utf-8"))
    if changed := compare_plans(former["pieces"], plan.pieces):
        raise ConfigError(
            f"the resumed run would see other data: {'; '.join(changed)}",
            "the order of data that the run began with, so that no sample is repeated or lost",
            f"restore the values, or start a new run with checkpoint.start_from={checkpoints}",
        )
