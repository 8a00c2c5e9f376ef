"""The work folder of a build: what was asked, which tasks there are, which are done.

It lies in OUT until the data folder is whole, so that a build that was killed goes on where it stood.

    command.json      what decides the bytes of the output; a build that asks for something else is refused
    tasks.jsonl       chunks of the source, a task a line; written last of what tasks need
    parts/00007/      shards and index of task 7; part.json in it means that the task is done
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import batched
from pathlib import Path

from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.builder.sources.finding import find_source
from megatron_medx.data.builder.sources.item import CHUNK_ITEMS
from megatron_medx.data.index import FORMAT, tokenizer_fingerprint
from megatron_medx.errors import DataError

WORK, COMMAND_FILE, TASKS_FILE, PARTS, PART_FILE = ".build", "command.json", "tasks.jsonl", "parts", "part.json"

MAX_TASKS = 10_000
"""Tasks of a build at most: each leaves some files in one folder."""

WITHOUT_EFFECT = ("processor", "workers", "overwrite", "report_picture", "slurm", "patient_key_file")
"""Options that change no byte of shards and index; of processor and key a fingerprint counts."""


def command_of(source: Path, out: Path, options: BuildOptions, processor: Path) -> dict:
    """What decides the bytes of the output. A source inside OUT is named relative to it."""
    files = find_source(source, options.patient_key).files
    source, out = source.resolve(), out.resolve()
    kept = {name: value for name, value in asdict(options).items() if name not in WITHOUT_EFFECT}
    return {
        "source": str(source.relative_to(out) if source.is_relative_to(out) else source),
        "source_bytes": sum(path.stat().st_size for path in files),
        **kept,
        "patient_key": hashlib.sha256(options.patient_key).hexdigest()[:16],
        "tokenizer": tokenizer_fingerprint(processor),
        "format": FORMAT,
    }


def write_tasks(source: Path, key: bytes, work: Path) -> int:
    """Cut the source into tasks, unless that was done before; return their number.

    Raises:
        DataError: the source cannot be read or holds nothing.
    """
    path = work / TASKS_FILE
    if not path.is_file():
        chunks = list(find_source(source, key).chunks(work))
        num_items = sum(chunk["count"] for chunk in chunks)
        if not num_items:
            raise DataError(f"{source} holds no sample", "at least one", "name another source")
        draft = path.with_suffix(".tmp")
        with open(draft, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(task) + "\n" for task in _tasks(chunks, num_items))
        draft.replace(path)
    return len(read_tasks(work))


def _tasks(chunks: list[dict], num_items: int) -> Iterator[list[dict]]:
    """Consecutive chunks that together have enough items; how many is a matter of the source alone."""
    enough = max(CHUNK_ITEMS, -(-num_items // MAX_TASKS))
    if all(chunk["count"] == CHUNK_ITEMS for chunk in chunks[:-1]):
        yield from map(list, batched(chunks, -(-enough // CHUNK_ITEMS)))
        return
    task, count = [], 0
    for chunk in chunks:
        task.append(chunk)
        count += chunk["count"]
        if count >= enough:
            yield task
            task, count = [], 0
    if task:
        yield task


def read_tasks(work: Path) -> list[list[dict]]:
    """The chunks of each task."""
    return [json.loads(line) for line in (work / TASKS_FILE).read_text(encoding="utf-8").splitlines()]


def part_folder(work: Path, number: int) -> Path:
    """Where the task of that number leaves its work."""
    return work / PARTS / f"{number:05d}"


def unfinished_tasks(work: Path, num_tasks: int) -> list[int]:
    """Numbers of the tasks that are not done."""
    return [number for number in range(num_tasks) if not (part_folder(work, number) / PART_FILE).is_file()]
