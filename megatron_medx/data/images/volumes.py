"""Volumes as slices in order: one NIfTI file, or the files of one DICOM series.

In: the files of a sample's volume part. Out: for each slice a file and a view for `files.read_image`, and where in the
patient it lies. Pixels are not decoded here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pydicom

from megatron_medx.data.images.dicom import GROUPS, PLANE_FIELDS, directions, is_dicom, lay_frame
from megatron_medx.data.images.files import errors_named
from megatron_medx.data.images.frames import split_frames
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.nifti import NiftiVolume, check_range, is_nifti
from megatron_medx.data.images.orientation import normal_of
from megatron_medx.data.images.view import ImageView
from megatron_medx.errors import DataError

POSITION_FIELDS = ["ImageType", "ImagePositionPatient", "SeriesInstanceUID", "NumberOfFrames", *PLANE_FIELDS, *GROUPS]

SAME_DIRECTION = 1e-3
"""Largest difference of two direction cosines that count as one: headers hold 4 to 6 digits."""

SAME_PLACE_MM = 0.01
"""Slices closer than this lie in one place; the thinnest that are acquired are 0.1 mm apart."""

GAP = 1.5
"""A step of more than so many times the median one is a gap: at least half a slice is missing."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice of a volume."""

    file: ImageFile
    view: ImageView
    """The windows of the volume; frame 0, as the file holds no other."""
    position_mm: float
    """Along the normal of all slices, in patient coordinates, rounded to one decimal."""


@dataclass(frozen=True, slots=True)
class Volume:
    """Slices ordered from foot to head; coronal ones from front to back, sagittal ones from right to left."""

    slices: list[Slice]
    spacing_mm: float
    """Median step from slice to slice; 0 where there is but one."""
    num_gaps: int
    """Steps of more than GAP times the median: slices are missing there."""
    num_localizers: int
    """Scout pictures of a DICOM series that were left out."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A picture with its place before the normal is known."""

    file: ImageFile
    corner: np.ndarray
    """(3,) center of the first pixel, mm."""
    cosines: np.ndarray
    """(6,) direction of rows, then of columns."""


def read_volume(files: Sequence[ImageFile], view: ImageView) -> Volume:
    """The slices of one NIfTI file, or of one DICOM series, whose files may hold several frames each.

    A slice of a DICOM series keeps its file, bytes untouched; of a file with several frames each becomes a file of its
    own, `<stem>.frame-<k>.dcm`, as does each slice of a NIfTI file, `<stem>.slice-<k>.nii`; k from 0. The frame of
    `view` is of no meaning here.

    Args:
        files: in any order.
        view: windows for every slice.

    Raises:
        DataError: no file, files of another kind or of several series, slices that differ in orientation, lie in one
            place or nowhere, nothing but localizers; what `NiftiVolume.of` refuses; windows asked of a NIfTI volume
            whose values cannot be HU.
    """
    if not files:
        raise DataError("a volume of no files", "a NIfTI file or the files of a DICOM series", "take the part out")
    for file in files:
        with errors_named(file):
            if not file.content:
                raise EOFError
            if is_nifti(file.content):
                return _nifti_volume(_alone(files), view)
            if not is_dicom(file.content):
                raise DataError(
                    f"{file.name} is neither a NIfTI nor a DICOM file; it begins with {file.content[:12]!r}",
                    "one NIfTI file, or a folder with one DICOM series and nothing else",
                    "take it out of the folder",
                )
    return _dicom_volume(files, view)


def choose_slices(num: int, at_most: int) -> list[int]:
    """Numbers of `at_most` of `num` slices, evenly spread, the first and the last among them; one is the middle one.

    Example: 4 of 10 -> 0, 3, 6, 9; 3 of 10 -> 0, 5, 9; 1 of 10 -> 5.

    Raises:
        ValueError: `at_most` is not positive.
    """
    if at_most < 1:
        raise ValueError(f"{at_most} slices of {num}")
    if num <= at_most:
        return list(range(num))
    if at_most == 1:
        return [num // 2]
    return [(2 * index * (num - 1) + at_most - 1) // (2 * (at_most - 1)) for index in range(at_most)]


def position_text(position_mm: float) -> str:
    """What stands in front of a slice's image: `12.5 mm`."""
    return f"{round(position_mm, 1) + 0.0:.1f} mm"  # adding 0.0 turns -0.0 into 0.0


def _alone(files: Sequence[ImageFile]) -> ImageFile:
    if len(files) > 1:
        raise DataError(
            f"a volume of {len(files)} files with a NIfTI file among them ({files[0].name}, {files[1].name}, ...)",
            "one NIfTI file, or the files of one DICOM series",
            "make a volume part of each",
        )
    return files[0]


def _nifti_volume(file: ImageFile, view: ImageView) -> Volume:
    volume = NiftiVolume.of(file)
    check_range(file.name, view.windows, *volume.extremes(), one_slice=False)
    stem = file.name.removesuffix(".gz").removesuffix(".nii")
    exact_mm = [volume.position_mm(frame) for frame in range(volume.num_frames)]
    slices = []
    for frame, at_mm in enumerate(exact_mm):
        one = ImageFile(f"{stem}.slice-{frame}.nii", volume.slice_content(frame))
        slices.append(Slice(one, ImageView(view.windows), round(at_mm, 1)))
    return _volume(slices, exact_mm, 0)


def _dicom_volume(files: Sequence[ImageFile], view: ImageView) -> Volume:
    placed, num_localizers, series = [], 0, {}
    for file in files:
        with errors_named(file):
            header = pydicom.dcmread(BytesIO(file.content), stop_before_pixels=True, specific_tags=POSITION_FIELDS)
            if "LOCALIZER" in (header.get("ImageType") or []):
                num_localizers += 1
                continue
            series.setdefault(str(header.get("SeriesInstanceUID", "")), file.name)
            placed += _frames(file, header)
    if len(series) > 1:
        raise _mixed(f"a volume of {len(series)} DICOM series", *list(series.values())[:2])
    if not placed:
        raise DataError(
            f"{files[0].name}: all {num_localizers} files of the volume are localizers",
            "a DICOM series of slices",
            "name the folder of another series of the study",
        )
    first = placed[0]
    for other in placed[1:]:
        if np.abs(other.cosines - first.cosines).max() > SAME_DIRECTION:
            raise _mixed("a volume of slices in different planes", first.file.name, other.file.name)
    normal = normal_of(first.cosines[:3], first.cosines[3:])
    placed.sort(key=lambda one: float(one.corner @ normal))
    exact_mm = [float(one.corner @ normal) for one in placed]
    for index in np.flatnonzero(np.diff(exact_mm) < SAME_PLACE_MM)[:1]:
        found = f"two slices of a volume in one place, {position_text(exact_mm[index])}"
        raise _mixed(found, placed[index].file.name, placed[index + 1].file.name)
    view = ImageView(view.windows)
    slices = [Slice(one.file, view, round(at_mm, 1)) for one, at_mm in zip(placed, exact_mm, strict=True)]
    return _volume(slices, exact_mm, num_localizers)


def _frames(file: ImageFile, header: pydicom.Dataset) -> list[_Placed]:
    """The frames of a file and their places; in enhanced files these stand in functional groups."""
    num_frames = int(header.get("NumberOfFrames") or 1)
    stem = file.name.removesuffix(".dcm")
    files = (ImageFile(f"{stem}.frame-{k}.dcm", content) for k, content in enumerate(split_frames(file.content)))
    placed = []
    for frame, one in enumerate([file] if num_frames == 1 else files):
        place = header.copy()
        lay_frame(place, frame)
        corner, known = place.get("ImagePositionPatient"), directions(place)
        if corner is None or len(corner) != 3 or known is None or not np.cross(*known).any():
            raise DataError(
                f"{file.name}: no sound ImagePositionPatient and ImageOrientationPatient"
                + f" in frame {frame}" * (frame > 0),
                "slices that say where they lie, all of one DICOM series",
                "take the file out of the volume's folder, or make images of the series instead of a volume",
            )
        cosines = np.concatenate([np.asarray(direction, dtype=np.float64) for direction in known])
        placed.append(_Placed(one, np.array([float(x) for x in corner]), cosines))
    return placed


def _volume(slices: list[Slice], exact_mm: list[float], num_localizers: int) -> Volume:
    steps_mm = np.diff(exact_mm)
    if not len(steps_mm):
        return Volume(slices, 0.0, 0, num_localizers)
    spacing_mm = float(np.median(steps_mm))
    return Volume(slices, spacing_mm, int((steps_mm > GAP * spacing_mm).sum()), num_localizers)


def _mixed(found: str, first: str, second: str) -> DataError:
    return DataError(
        f"{found} ({first}, {second})",
        "one series in one plane, each place once: several phases, echoes or reconstructions are several volumes",
        "put each into a folder of its own and make a volume part of each",
    )
