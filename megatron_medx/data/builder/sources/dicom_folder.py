"""A folder with DICOM files, at any depth and by any name, as a source: one sample a series.

A sample is a document: what the header says of the series without naming anybody, its images or its volume, and its
report, where a text file of the series has one.
"""

import hashlib
import hmac
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pydicom

from megatron_medx.data.builder.rejects import Rejected, bad_image
from megatron_medx.data.builder.sources.item import Item
from megatron_medx.data.builder.sources.lines import LISTED_FILE, chunk_lines, line_chunks
from megatron_medx.data.images.deidentify import patient_key, safe_description
from megatron_medx.data.images.dicom import PREAMBLE_BYTES
from megatron_medx.data.images.files import errors_named
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.errors import DataError

REPORT_NAME = "report.txt"
"""A series' report: in its folder, or in the nearest one above, that holds no other series."""

VOLUME_MODALITIES = ("CT", "MR", "PT")
"""Of several pictures of one series with a place in the patient these make a volume."""

FIELDS = ["SeriesInstanceUID", "Modality", "InstanceNumber", "NumberOfFrames", "ImagePositionPatient"]

SERIES = "series"
"""Name of the volume in the record; the item knows its files."""


@dataclass(slots=True)
class _Series:
    """Files of one series, relative to the source."""

    uid: str
    modality: str
    files: list[tuple[int, str, int]] = field(default_factory=list)
    """Instance number, name, frames."""
    num_placed: int = 0
    """Files with ImagePositionPatient."""
    report: str = ""
    """Name of its report; empty for none."""
    problem: str = ""
    """Why the header of a file, which is then alone here, cannot be read."""


class DicomFolder:
    """See the module. Headers are read once, when the source is cut into chunks.

    Args:
        folder: searched whole.
        key: of the pseudonyms that stand for patients and series.
    """

    def __init__(self, folder: Path, key: bytes):
        self.folder, self.files, self._key = folder, [], key

    def chunks(self, work: Path) -> Iterator[dict]:
        """See `Source`; series in the order of their UIDs."""
        series = _find_series(self.folder)
        _find_reports(self.folder, series)
        with open(work / LISTED_FILE, "w", encoding="utf-8") as listed:
            listed.writelines(json.dumps(asdict(one)) + "\n" for one in series)
        yield from line_chunks(work / LISTED_FILE, 0)

    def items(self, chunk: dict, work: Path) -> Iterator[Item]:
        """See `Source`."""
        for _, line in chunk_lines(work / LISTED_FILE, chunk):
            yield self._item(_Series(**json.loads(line)))

    def _item(self, series: _Series) -> Item:
        names = [name for _, name, _ in sorted(series.files)]
        where = f"series of {names[0]}"
        if series.problem:
            return Item(where, {}, self.folder, problem=Rejected("truncated image", series.problem, names[0]))
        try:
            first = ImageFile.of(self.folder / names[0])
            with errors_named(first):
                description = safe_description(first.content)
                patient = patient_key(first.content, self._key)
        except DataError as error:
            return Item(where, {}, self.folder, problem=bad_image(error, names[0]))
        content: list[dict] = []
        if description:
            content.append({"type": "text", "text": f"{description}\n"})
        stacks = {}
        if series.modality in VOLUME_MODALITIES and series.num_placed == len(names) and len(names) > 1:
            content.append({"type": "volume", "volume": SERIES})
            stacks[SERIES] = names
        else:
            content += _images(sorted(series.files))
        if series.report:
            report = (self.folder / series.report).read_text(encoding="utf-8", errors="replace").strip()
            content += [{"type": "text", "text": f"\n{report}"}] if report else []
        pseudonym = hmac.new(self._key, series.uid.encode(), hashlib.sha256).hexdigest()[:16]
        record = {
            "id": f"series-{pseudonym}",
            "content": content,
            "modality": series.modality,
            "patient": patient,
        }
        return Item(where, record, self.folder, stacks=stacks)


def holds_dicom(folder: Path) -> bool:
    """True where some file below, by its content, is DICOM."""
    return any(_starts_as_dicom(path) for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder in the order of their names, folder by folder."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def _starts_as_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(PREAMBLE_BYTES + 4).endswith(b"DICM")


def _find_series(folder: Path) -> list[_Series]:
    """Every series, in the order of UIDs; a file whose header cannot be read is one by itself.

    A DICOMDIR names no series and is passed over.
    """
    series: dict[str, _Series] = {}
    for path in _files(folder):
        if not _starts_as_dicom(path):
            continue
        name = str(path.relative_to(folder))
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=FIELDS)
            uid, number = header.get("SeriesInstanceUID"), int(header.get("InstanceNumber") or 0)
            frames = int(header.get("NumberOfFrames") or 1)
        except Exception as error:  # pydicom raises anything on broken bytes
            problem = f"its header cannot be read ({type(error).__name__}: {error})"
            series[name] = _Series(name, "", [(0, name, 1)], problem=problem)
            continue
        if uid:
            one = series.setdefault(str(uid), _Series(str(uid), str(header.get("Modality", ""))))
            one.files.append((number, name, frames))
            one.num_placed += "ImagePositionPatient" in header
    return [series[uid] for uid in sorted(series)]


def _find_reports(folder: Path, series: list[_Series]) -> None:
    """Name the report of each series that has one: `<series uid>.txt` or `<file>.txt` beside its files, or REPORT_NAME.

    A REPORT_NAME above several series is nobody's: which of them it is about is not known.
    """
    num_below: dict[Path, int] = defaultdict(int)
    for one in series:
        for above in {above for _, name, _ in one.files for above in Path(name).parents}:
            num_below[above] += 1
    for one in series:
        first = Path(one.files[0][1])
        beside = [first.with_name(f"{one.uid}.txt")]
        if len(one.files) == 1:
            beside += [first.with_suffix(".txt"), first.with_name(f"{first.name}.txt")]
        beside += [above / REPORT_NAME for above in first.parents if num_below[above] == 1]
        one.report = next((str(path) for path in beside if (folder / path).is_file()), "")


def _images(files: list[tuple[int, str, int]]) -> list[dict]:
    """An image part for each frame; those of several say which they are, so that a long sample can do with fewer."""
    return [
        {"type": "image", "image": name}
        | ({"frame": frame, "position": f"frame {frame + 1}"} if num_frames > 1 else {})
        for _, name, num_frames in files
        for frame in range(num_frames)
    ]
