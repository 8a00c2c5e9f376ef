"""The last step of a build: what the tasks made becomes a data folder."""

import json
import shutil
from pathlib import Path

from megatron_medx.config.processor import PROCESSOR_FOLDER, check_processor
from megatron_medx.data.builder.merge import merge
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.builder.plan import COMMAND_FILE, WORK, command_of, read_tasks, unfinished_tasks
from megatron_medx.data.builder.sources.finding import find_source
from megatron_medx.data.index import Manifest
from megatron_medx.errors import DataError

SPLITS_FILE = "splits.json"
"""In OUT, where there are splits: their names and samples; written last."""


def finish_build(source: Path, out: Path, options: BuildOptions) -> Manifest:
    """Merge what the tasks made and remove the work folder.

    Raises:
        DataError: a task is not done.
    """
    work, processor = out / WORK, choose_processor(source, options)
    num_tasks = len(read_tasks(work))
    left = unfinished_tasks(work, num_tasks)
    if left:
        raise DataError(
            f"{len(left)} of {num_tasks} tasks of {out} are not done, the first is {left[0]}",
            "all of them",
            "look at the logs of the tasks, then give the same `medx data build` again: it goes on where it stood",
        )
    merge(out, work, processor, options, command_of(source, out, options, processor), num_tasks)
    if options.splits:
        counts = {name: Manifest.read(out / name).num_samples for name in options.split_names}
        (out / SPLITS_FILE).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    (work / COMMAND_FILE).unlink()  # from here on the folder is whole
    shutil.rmtree(work)
    return Manifest.read(out / options.split_names[0])


def choose_processor(source: Path, options: BuildOptions) -> Path:
    """The processor directory of a build: the named one, else the source's own; checked.

    Raises:
        DataError: there is none, or it cannot be used.
    """
    named = options.processor or find_source(source, options.patient_key).folder / PROCESSOR_FOLDER
    if not Path(named).is_dir():
        raise DataError(
            f"no processor directory {named}",
            "a Hugging Face directory with the tokenizer that training will use",
            "name it with --processor; `medx data demo data/demo` writes a small one to data/demo/source/processor",
        )
    check_processor(named)
    return Path(named)
