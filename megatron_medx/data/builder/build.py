"""The entry of a build: from a source to a data folder, whole or resumable."""

import json
import shutil
from pathlib import Path

from megatron_medx.config.processor import PROCESSOR_FOLDER
from megatron_medx.data.builder.finish import SPLITS_FILE, choose_processor, finish_build
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.builder.plan import COMMAND_FILE, WORK, command_of, unfinished_tasks, write_tasks
from megatron_medx.data.builder.progress import build_progress
from megatron_medx.data.builder.report import DEIDENTIFICATION_FILE, PICTURE_FILE, REPORT_FILE
from megatron_medx.data.builder.task import BuildTask
from megatron_medx.data.index import INDEX_FILE, MANIFEST_FILE, REJECTS_FILE, SHARDS, Manifest
from megatron_medx.errors import DataError

SLURM_FOLDER = "slurm"

WRITTEN = (
    *(MANIFEST_FILE, INDEX_FILE, REJECTS_FILE, REPORT_FILE, PICTURE_FILE, DEIDENTIFICATION_FILE, SPLITS_FILE),
    *(SHARDS, PROCESSOR_FOLDER, SLURM_FOLDER, WORK),
)
"""All that a build writes into a data folder, and all that `overwrite` removes."""


def build_data(source: Path, out: Path, options: BuildOptions | None = None) -> Manifest | None:
    """Build a data folder, or finish one that was begun by the same command.

    Args:
        source: what `sources/finding.py` knows.
        out: the data folder; with splits the folder above one for each of them.
        options: None for the defaults.

    Returns:
        The manifest of `out`, with splits of the first one; None where Slurm jobs will do the work.

    Raises:
        DataError: the source or its processor cannot be used; `out` holds another build, or something else.
    """
    source, out, options = Path(source), Path(out), options or BuildOptions()
    processor = choose_processor(source, options)
    command = command_of(source, out, options, processor)
    if processor.resolve() == (out / PROCESSOR_FOLDER).resolve():
        raise DataError(
            f"{processor} as processor, which the build would write itself",
            "a processor outside of the output folder",
            "copy it to another place and name that with --processor",
        )
    _open_folder(source, out, options, command)
    work = out / WORK
    num_tasks = write_tasks(source, options.patient_key, work)
    task = BuildTask(source.resolve(), processor.resolve(), work.resolve(), options)
    if options.slurm:
        from megatron_medx.data.builder.executors import submit_slurm

        submit_slurm(task, num_tasks, out.resolve())
        return None
    with build_progress(work):
        if min(options.workers, num_tasks) == 1:
            for number in unfinished_tasks(work, num_tasks):
                task.run(number)
        else:
            from megatron_medx.data.builder.executors import run_local

            run_local(task, num_tasks)
    return finish_build(source, out, options)


def _open_folder(source: Path, out: Path, options: BuildOptions, command: dict) -> None:
    """Make the work folder, or find that of the same command.

    Raises:
        DataError: `out` is the source, is whole, belongs to another command, or holds what no build has written.
    """
    if source.resolve() == out.resolve():
        raise DataError(f"{out} as source and output", "an output folder of its own", "name another folder")
    begun = out / WORK / COMMAND_FILE
    if begun.is_file():
        other = json.loads(begun.read_text(encoding="utf-8"))
        if other == command:
            return
        if not options.overwrite:
            different = [name for name in command if other.get(name) != command[name]]
            raise DataError(
                f"{out} holds half a build with " + ", ".join(f"{name} = {other.get(name)}" for name in different),
                "the same command: " + ", ".join(f"{name} = {command[name]}" for name in different),
                "finish that build with its own options, choose another folder, or add --overwrite",
            )
    whole = (out / MANIFEST_FILE).is_file() or (out / SPLITS_FILE).is_file()
    if whole and not options.overwrite and not begun.is_file():
        raise DataError(f"{out} is a finished data folder", "a new folder", "choose another name, or add --overwrite")
    splits = _splits_in(out)
    ours = {WORK, *splits, *WRITTEN} if whole or begun.is_file() else {WORK}
    strange = sorted(path.name for path in out.iterdir() if path.name not in ours) if out.is_dir() else []
    strange = [name for name in strange if not source.resolve().is_relative_to((out / name).resolve())]
    if strange:
        raise DataError(
            f"{out} exists and holds {', '.join(strange[:5])}", "a new folder, or an empty one", "choose another name"
        )
    if whole or begun.is_file():
        _remove(out, splits)
    (out / WORK).mkdir(parents=True, exist_ok=True)
    draft = out / WORK / "command.tmp"
    draft.write_text(json.dumps(command, indent=1) + "\n", encoding="utf-8")
    draft.replace(begun)


def _splits_in(out: Path) -> list[str]:
    """Names of the splits that a build has written below `out`, or was to write."""
    finished, begun = out / SPLITS_FILE, out / WORK / COMMAND_FILE
    names = list(json.loads(finished.read_text(encoding="utf-8"))) if finished.is_file() else []
    return names + list(json.loads(begun.read_text(encoding="utf-8"))["splits"] if begun.is_file() else [])


def _remove(out: Path, splits: list[str]) -> None:
    """Take away what a build wrote, and nothing else; manifests go first, so that no half folder looks whole."""
    for folder in [*(out / name for name in splits), out]:
        for name in WRITTEN:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if folder != out and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
