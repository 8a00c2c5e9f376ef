"""What a conversion would write, file by file and key by key, whether it may, and how long it would take.

Nothing is written but the trial of the disk's speed (`disk_rate.py`). Loads torch only where the source needs it
(see `planned_source.py`).
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_medx.checkpoint.planning.disk_rate import read_rate, write_rate
from megatron_medx.checkpoint.planning.planned_source import PlannedContent, planned_hf, planned_megatron
from megatron_medx.checkpoint.writing.finished_units import FINISHED
from megatron_medx.checkpoint.writing.output_folder import PARTIAL_SUFFIX, check_target
from megatron_medx.checkpoint.writing.work_units import OVERHEAD_BYTES, Unit, hf_units, megatron_units
from megatron_medx.config.checkpoint_folders import RUN_FILE, check_root_name, is_hf_directory, is_megatron_checkpoint
from megatron_medx.config.files import read_model_section
from megatron_medx.errors import CheckpointError

if TYPE_CHECKING:
    from megatron_medx.checkpoint.content import Content

TO_HF, TO_MEGATRON = "to-hf", "to-megatron"


def dry_run(
    source: Path,
    out: Path,
    *,
    direction: str,
    overwrite: bool,
    shard_size_bytes: int,
    bytes_per_s: float | None = None,
    **options: object,
) -> dict:
    """Plan a conversion.

    Args:
        source: as for the conversion; config.json (or run.yaml) alone is enough.
        direction: TO_HF or TO_MEGATRON.
        out, overwrite, shard_size_bytes: as for the conversion.
        bytes_per_s: how fast bytes are converted; None measures the disks.
        options: further ones of the conversion that decide what is written.
    Returns:
        Plain values: `direction`, `source`, `out`; `tensors` (how many on either side), `bytes`; `files` (each with
        `name`, `tensors`, `bytes`); `keys` (each with `hf`, `hf_shapes`, `megatron`, `megatron_shape`, `dtype`,
        `bytes`, `files`); `disk` (`needed_bytes`, `free_bytes`); `obstacles` (reasons why the conversion would be
        refused now); `earlier_files` (finished by an attempt that was killed); `time` (see `_time`).
    Raises:
        CheckpointError: the source is not what it must be.
    """
    content = _content(direction, source, options)
    cut = hf_units if direction == TO_HF else megatron_units
    units = cut(content.bound, content.specs, shard_size_bytes)
    out = out.absolute()
    disk = {"needed_bytes": content.num_bytes + OVERHEAD_BYTES, "free_bytes": shutil.disk_usage(_existing(out)).free}
    num_groups, num_tensors = len(content.bound), len(content.specs)
    return {
        "direction": direction,
        "source": str(source),
        "out": str(out),
        "tensors": {"hf": num_tensors, "megatron": num_groups},
        "bytes": content.num_bytes,
        "files": [{"name": unit.name, "tensors": len(unit.specs), "bytes": unit.num_bytes} for unit in units],
        "keys": _keys(content, units),
        "disk": disk,
        "obstacles": _obstacles(direction, content, out, overwrite, disk),
        "earlier_files": len(list((out.with_name(out.name + PARTIAL_SUFFIX) / FINISHED).glob("*.json"))),
        "time": _time(content, out, bytes_per_s),
    }


def _content(direction: str, source: Path, options: dict[str, object]) -> PlannedContent | Content:
    """Names, shapes and dtypes of what would be written, by the cheapest way that there is for this source."""
    chosen = {name: value for name, value in options.items() if value not in (None, "keep")}
    if direction == TO_HF:
        if not is_megatron_checkpoint(source) and (source / RUN_FILE).is_file():
            return planned_megatron(
                read_model_section(source / RUN_FILE), source, options["dtype"], options.get("only")
            )
        from megatron_medx.checkpoint.convert import hf_content

        return hf_content(source, **options)
    if is_hf_directory(source) and chosen.keys() <= {"dtype"}:
        return planned_hf(source, chosen.get("dtype", "keep"))
    from megatron_medx.checkpoint.convert import megatron_content

    return megatron_content(source, **options)


def _keys(content: PlannedContent | Content, units: list[Unit]) -> list[dict]:
    """Every group of tensors: its keys and shapes on both sides, and the files that it goes to."""
    files = {key: unit.name for unit in units for key in unit.specs}
    return [
        {
            "hf": list(one.hf_keys),
            "hf_shapes": [list(shape) for shape in one.hf_shapes],
            "megatron": one.megatron_key,
            "megatron_shape": list(one.megatron_shape),
            "dtype": str(content.specs[one.hf_keys[0]].dtype).removeprefix("torch."),
            "bytes": sum(content.specs[key].num_bytes for key in one.hf_keys),
            "files": list(dict.fromkeys(files[key] for key in (*one.hf_keys, one.megatron_key) if key in files)),
        }
        for one in content.bound
    ]


def _obstacles(
    direction: str, content: PlannedContent | Content, out: Path, overwrite: bool, disk: dict[str, int]
) -> list[str]:
    """What the conversion would stop at: the same checks, all of them."""
    checks = [partial(check_target, out, folder, overwrite) for folder in content.folders]
    checks += [partial(check_root_name, out)] if direction == TO_MEGATRON else []
    found = []
    for check in checks:
        try:
            check()
        except CheckpointError as error:
            found.append(f"{error.found} ({error.do})")
    if not os.access(_existing(out), os.W_OK):
        found.append(f"{_existing(out)} may not be written")
    if disk["free_bytes"] < disk["needed_bytes"]:
        found.append(f"{disk['free_bytes'] / 1e9:.3f} GB free, {disk['needed_bytes'] / 1e9:.3f} GB needed")
    return list(dict.fromkeys(found))


def _time(content: PlannedContent | Content, out: Path, bytes_per_s: float | None) -> dict[str, object]:
    """The estimate and what it rests on.

    Every byte is read once and written once, one after the other: right for one disk; source and target on different
    disks overlap and are faster. Start-up and rearranging are not in it.

    Returns:
        `seconds` (None where nothing could be measured), `assumed_bytes_per_s`, `write` and `read` (each `bytes` and
        `seconds` of the trial, or None), `read_from` (the file that was read, None where there is none).
    """
    num_bytes = content.num_bytes
    if bytes_per_s is not None:
        return {"seconds": num_bytes / bytes_per_s, "assumed_bytes_per_s": bytes_per_s, "write": None, "read": None,
                "read_from": None}  # fmt: skip
    folder, largest = _existing(out), _largest_file(content.folders)
    write = write_rate(folder) if os.access(folder, os.W_OK) else None
    read = read_rate(largest) if largest else None
    seconds = None
    if write:
        trials = [write, read or write]  # a planned source: as fast to read as the output is to write
        seconds = sum(num_bytes * trial["seconds"] / trial["bytes"] for trial in trials)
    return {"seconds": seconds, "assumed_bytes_per_s": None, "write": write, "read": read,
            "read_from": str(largest) if largest else None}  # fmt: skip


def _largest_file(folders: tuple[Path, ...]) -> Path | None:
    """The largest file with weights among the sources."""
    found = [path for folder in folders for ending in ("safetensors", "distcp") for path in folder.glob(f"*.{ending}")]
    return max(found, key=lambda path: path.stat().st_size, default=None)


def _existing(path: Path) -> Path:
    """The nearest folder above a path that is there."""
    return next(parent for parent in path.parents if parent.is_dir())
