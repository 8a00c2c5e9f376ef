"""The tensors of one network written out as a Hugging Face directory or as a Megatron release checkpoint.

What is written is a `Content`: names, shapes and a way to read each group. It is cut into units, one output file each
(`work_units.py`), which one process or several write (`workers.py`); in a unit one group at a time goes from its reader
through its transformation into the file. The result appears under its name only when complete, and finished files
survive a kill (`output_folder.py`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import torch

from megatron_medx.checkpoint.hugging_face.hf_directory import write_companions, write_shard_index
from megatron_medx.checkpoint.hugging_face.safetensors_stream import write_safetensors
from megatron_medx.checkpoint.layout.rules import Binding, bindings, extra_state_modules
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.megatron_files.megatron_directory import complete_root
from megatron_medx.checkpoint.megatron_files.torch_dist import state_objects, write_data_file
from megatron_medx.checkpoint.writing.output_folder import UnfinishedFolder, new_folder
from megatron_medx.checkpoint.writing.progress import Advance, byte_progress
from megatron_medx.checkpoint.writing.streaming import read_ahead
from megatron_medx.checkpoint.writing.work_units import (
    DEFAULT_SHARD_SIZE_BYTES,
    OVERHEAD_BYTES,
    Unit,
    hf_units,
    megatron_units,
)
from megatron_medx.checkpoint.writing.workers import Write, started
from megatron_medx.config.checkpoint_folders import RELEASE, check_root_name
from megatron_medx.config.model import ModelConfig

_FILE_FORMAT = 1
"""To be raised when the same plan makes other files: those of an older program are then not gone on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The tensors of one network on their way into files: what they are, and how each group of them is had."""

    model: ModelConfig
    """Sizes of the whole network."""
    bound: tuple[Binding, ...]
    """Groups to write, in this order."""
    specs: dict[str, TensorSpec]
    """Shape and dtype of each tensor in Hugging Face layout, as it will be written."""
    read: Callable[[Binding], tuple[torch.Tensor, ...]]
    """Gives the tensors of one group in Hugging Face layout, in any dtype; called in forked workers, in any order."""
    folders: tuple[Path, ...]
    """What is read: an output must not replace any of it."""
    processor_folder: Path
    """Where the tokenizer, template and preprocessor files lie."""
    options: str | None = None
    """All that decides values besides the files in `folders`, e.g. the command; None: not known, so that no attempt
    goes on with another's files."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, in either layout."""
        return sum(spec.num_bytes for spec in self.specs.values())


@contextmanager
def new_hf_directory(
    content: Content, out: str | Path, label: str, *, overwrite: bool, shard_size_bytes: int, num_workers: int = 1
) -> Iterator[Path]:
    """Write a Hugging Face directory; the block may add to it before it gets its name.

    Args:
        content: what to write.
        out: directory to create.
        label: what the progress line calls it.
        overwrite, shard_size_bytes, num_workers: as in `to_hf`.
    Raises:
        CheckpointError: the target is not what it must be, or the content cannot be read; nothing is left behind.
        InterruptedConversion: the disk filled up or a worker was killed; finished files are kept.
    """
    units = hf_units(content.bound, content.specs, shard_size_bytes)
    with _unfinished(content, out, units, label, overwrite=overwrite) as unfinished:
        write = partial(_write_hf_unit, content, unfinished)
        _write_units(label, unfinished, units, write, num_workers)
        write_shard_index(unfinished.folder, {unit.name: unit.specs for unit in units})
        write_companions(unfinished.folder, content.model, widest_dtype(content.specs), content.processor_folder)
        yield unfinished.folder


def write_megatron_root(
    content: Content,
    out: str | Path,
    label: str,
    provenance: Mapping[str, object],
    *,
    overwrite: bool,
    shard_size_bytes: int = DEFAULT_SHARD_SIZE_BYTES,
    num_workers: int = 1,
) -> None:
    """Write a Megatron release checkpoint.

    Args:
        content: what to write: a whole network.
        out: checkpoint root to create.
        label: what the progress line calls it.
        provenance: what made the weights, for run.yaml.
        overwrite: True replaces an existing root.
        shard_size_bytes: largest size of one data file's tensors.
        num_workers: processes that write; the files do not depend on it.
    Raises:
        CheckpointError: the target is not what it must be, or the content cannot be read; nothing is left behind.
        InterruptedConversion: the disk filled up or a worker was killed; finished files are kept.
    """
    units = megatron_units(content.bound, content.specs, shard_size_bytes)
    objects = state_objects(extra_state_modules(bindings(content.model)))
    with _unfinished(content, out, units, label, overwrite=overwrite) as unfinished:
        check_root_name(Path(out))  # here: an output that holds the source is refused first, as for any output
        (unfinished.folder / RELEASE).mkdir(exist_ok=True)
        write = partial(_write_megatron_unit, content, unfinished, {units[-1].name: objects})
        _write_units(label, unfinished, units, write, num_workers)
        facts = unfinished.finished.facts()
        complete_root(
            unfinished.folder,
            content.model,
            {key: spec for unit in units for key, spec in unit.specs.items()},
            {unit.name: facts[unit.name] for unit in units},
            processor_folder=content.processor_folder,
            provenance=provenance,
        )


@contextmanager
def _unfinished(
    content: Content, out: str | Path, units: Sequence[Unit], kind: str, *, overwrite: bool
) -> Iterator[UnfinishedFolder]:
    """`new_folder` for a content."""
    out = Path(out)
    with new_folder(
        out,
        source=_most_at_risk(content.folders, out),
        overwrite=overwrite,
        needed_bytes=content.num_bytes + OVERHEAD_BYTES,
        fingerprint=None if content.options is None else _fingerprint(content, units, kind),
    ) as unfinished:
        yield unfinished


def _fingerprint(content: Content, units: Sequence[Unit], kind: str) -> dict[str, object]:
    """What decides every byte of the units: an attempt goes on with another's files when all of it is the same.

    The processor's files are not in it: every attempt copies them at its end.
    """
    return {
        "options": [kind, content.options],
        "network": dataclasses.asdict(content.model),
        "source files": {str(folder.absolute()): _files(folder) for folder in content.folders},
        "plan": {
            unit.name: {key: [list(spec.shape), str(spec.dtype)] for key, spec in unit.specs.items()} for unit in units
        },
        "program": [_FILE_FORMAT, torch.__version__],
    }


def _files(folder: Path) -> dict[str, list[int]]:
    """Name -> size in bytes and time of the last change in ns; a folder of a source may be absent."""
    found = {path.name: path.stat() for path in folder.glob("*") if path.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in sorted(found.items())}


def _write_units(
    label: str, unfinished: UnfinishedFolder, units: Sequence[Unit], write: Write, num_workers: int
) -> None:
    """Write the units that no earlier attempt finished."""
    finished = unfinished.finished.facts()
    left = [unit for unit in units if unit.name not in finished]
    total = sum(unit.num_bytes for unit in units)
    done = total - sum(unit.num_bytes for unit in left)
    with started(left, write, num_workers) as work, byte_progress(label, total, done) as advance:
        work(advance)


def _write_hf_unit(content: Content, unfinished: UnfinishedFolder, unit: Unit, advance: Advance) -> None:
    file = unfinished.folder / unit.name
    tensors = read_ahead(_hf_tensors(content, unit))
    write_safetensors(file, unit.specs, _counted(tensors, advance))
    unfinished.finished.add(unit.name, file, {})


def _write_megatron_unit(
    content: Content,
    unfinished: UnfinishedFolder,
    objects: Mapping[str, Mapping[str, object]],
    unit: Unit,
    advance: Advance,
) -> None:
    file = unfinished.folder / RELEASE / unit.name
    tensors = _counted(read_ahead(_megatron_tensors(content, unit)), advance)
    unfinished.finished.add(unit.name, file, write_data_file(file, unit.specs, tensors, objects.get(unit.name, {})))


def _most_at_risk(folders: tuple[Path, ...], out: Path) -> Path:
    """The folder that `new_folder` is to keep from being overwritten: one that lies inside `out`, if any does."""
    return next((folder for folder in folders if folder.resolve().is_relative_to(out.resolve())), folders[0])


def widest_dtype(specs: dict[str, TensorSpec]) -> torch.dtype:
    """The dtype that holds every tensor exactly: what config.json tells a reader to load in."""
    return reduce(torch.promote_types, {spec.dtype for spec in specs.values()})


def _hf_tensors(content: Content, unit: Unit) -> Iterator[tuple[str, torch.Tensor]]:
    for one in unit.bound:
        for key, tensor in zip(one.hf_keys, content.read(one), strict=True):
            if key in unit.specs:  # the group's other tensors lie in the shard before or after
                yield key, tensor.to(content.specs[key].dtype)


def _megatron_tensors(content: Content, unit: Unit) -> Iterator[tuple[str, torch.Tensor]]:
    for one in unit.bound:
        parts = zip(one.hf_keys, content.read(one), strict=True)
        cast = tuple(tensor.to(content.specs[key].dtype) for key, tensor in parts)
        yield one.megatron_key, one.transformation.to_megatron(cast, content.model)


def _counted(tensors: Iterator[tuple[str, torch.Tensor]], advance: Advance) -> Iterator[tuple[str, torch.Tensor]]:
    for key, tensor in tensors:
        advance(tensor.nbytes)
        yield key, tensor
