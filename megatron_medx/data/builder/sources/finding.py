"""What a SOURCE is, found by looking at it."""

import json
from pathlib import Path

from megatron_medx.data.builder.sources.dicom_folder import DicomFolder, holds_dicom
from megatron_medx.data.builder.sources.item import Source
from megatron_medx.data.builder.sources.lines import JsonList, Lines
from megatron_medx.data.builder.sources.tables import Tables
from megatron_medx.data.samples import SAMPLES_FILE
from megatron_medx.errors import DataError

ARROW_STATE_FILE = "state.json"
"""Beside the Arrow files of a dataset that `datasets.save_to_disk` wrote; names them."""

ARROW_SPLITS_FILE = "dataset_dict.json"
"""Above several such datasets; names their folders."""

KINDS = (
    "a folder with samples.jsonl, a .jsonl, .json (LLaVA), .parquet or .arrow file, a folder with parquet files, "
    "a Hugging Face dataset saved to disk, or a folder with DICOM files"
)


def find_source(path: Path, key: bytes) -> Source:
    """The source at a path.

    Args:
        path: SOURCE.
        key: of the pseudonyms that stand for patients.

    Raises:
        DataError: there is nothing, or nothing that is known.
    """
    path = Path(path)
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        raise DataError(f"no {path}", KINDS, "mend the path of the source")
    if (path / SAMPLES_FILE).is_file():
        return Lines([path / SAMPLES_FILE], path)
    if arrow := _arrow_files(path):
        return Tables(arrow, path)
    if parquet := sorted(path.rglob("*.parquet")):
        return Tables(parquet, path)
    if lines := sorted(path.glob("*.jsonl")):
        return Lines(lines, path)
    if holds_dicom(path):
        return DicomFolder(path, key)
    lists = sorted(path.glob("*.json"))
    if len(lists) == 1:
        return JsonList(lists[0])
    raise DataError(f"{path}, a folder with nothing that is known", KINDS, "name the file itself, or another folder")


def _of_file(path: Path) -> Source:
    if path.suffix == ".jsonl":
        return Lines([path], path.parent)
    if path.suffix == ".json":
        return JsonList(path)
    if path.suffix in (".parquet", ".arrow"):
        return Tables([path], path.parent)
    raise DataError(f"{path}, a file named {path.suffix or 'without a suffix'}", KINDS, "name another file or a folder")


def _arrow_files(folder: Path) -> list[Path]:
    """Arrow files of a saved dataset, or of all splits of one, as it names them."""
    if (folder / ARROW_SPLITS_FILE).is_file():
        names = json.loads((folder / ARROW_SPLITS_FILE).read_text(encoding="utf-8"))["splits"]
        return [path for name in names for path in _arrow_files(folder / name)]
    if not (folder / ARROW_STATE_FILE).is_file():
        return []
    state = json.loads((folder / ARROW_STATE_FILE).read_text(encoding="utf-8"))
    return [folder / entry["filename"] for entry in state.get("_data_files", [])]
