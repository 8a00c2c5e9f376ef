"""NIfTI files (.nii, .nii.gz; versions 1 and 2) as stacks of slices, each of which can be seen as an 8-bit picture.

nibabel reads the header; the affine says how voxels lie in the patient. Slices are axial, but lie across the longest
voxel edge where that is THICK times the others (an axial cut through thick sagittal slices shows steps), or across the
only axis of one voxel. They are turned to the conventions of `orientation.PLANES` and counted from foot to head, from
front to back or from right to left. Voxels that are not square in the picture stay so.

NIfTI has no field for HU. A window asked of it is taken as the word of the sample's author that its values are HU,
and refused where they cannot be.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Self

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nibabel.volumeutils import apply_read_scaling
from PIL import Image

from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.orientation import PLANES, normal_of
from megatron_medx.data.images.view import ImageView, check_frame, check_pixels, too_many_pixels
from megatron_medx.data.images.windows import PhysicalImage, named_windows, percentile_window, to_8bit
from megatron_medx.errors import DataError

GZIP = b"\x1f\x8b"
"""First two bytes of a compressed file (RFC 1952)."""

THICK = 1.5
"""Ratio of voxel edges above which slices are taken as they were acquired."""

MAX_VOLUME_BYTES = 2**31
"""Most bytes of stored voxels: 2,500 slices of 512 x 512 with 16 bits are 1.3e9. A small compressed file can promise
far more."""

ACROSS = {"axial": "S", "coronal": "P", "sagittal": "L"}
"""Plane -> where frame numbers grow to, in the letters of nibabel."""

LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0])
"""NIfTI's patient coordinates (x to the right, y to the front) to those of DICOM."""

TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
"""Free texts of a header; some hold a name or a path with one."""


@dataclass(frozen=True, slots=True)
class NiftiVolume:
    """The slices of one file; nothing is scaled or copied before a slice is asked for."""

    name: str
    header: Nifti1Header
    voxels: np.ndarray
    """(X, Y, Z) as stored, before slope and intercept."""
    plane: str
    """`axial`, `coronal` or `sagittal`."""
    to_view: np.ndarray
    """(3, 2) orientation of nibabel from the stored axes to right, bottom and across."""

    @classmethod
    def of(cls, file: ImageFile) -> Self:
        """Read the header and look at its voxels.

        Raises:
            DataError: more than one volume, colors or complex numbers, no orientation, voxels that are missing or too
                many.
            Exception: whatever nibabel says of a broken header; `files.errors_named` names the file.
        """
        header, data = nifti_parts(file)
        shape = header.get_data_shape()
        if int(np.prod(shape[3:])) != 1:
            raise DataError(
                f"{file.name} holds {int(np.prod(shape[3:]))} volumes of {_times(shape[:3])} voxels",
                "one volume in a NIfTI file",
                "save the volume that the sample is about as a file of its own (nibabel: image.slicer[..., 0])",
            )
        if header.get_data_dtype().kind not in "iuf":
            raise DataError(
                f"{file.name} holds voxels of type {header.get_value_label('datatype')}",
                "whole or floating-point numbers",
                "save the magnitude, or colors as PNG pictures",
            )
        if not header["qform_code"] and not header["sform_code"]:
            raise DataError(
                f"{file.name} does not say how it lies in the patient (qform_code and sform_code are 0)",
                "a NIfTI file with an affine, so that left and right are known",
                "convert the original images again, or set the codes if the affine is known to be right",
            )
        voxels = np.ndarray(shape, header.get_data_dtype(), data, header.get_data_offset(), order="F")
        voxels = voxels.reshape((*shape[:3], 1, 1)[:3], order="F")
        stored = io_orientation(header.get_best_affine())
        plane = _plane(header.get_best_affine(), stored, voxels.shape)
        right, bottom = (letter.replace("F", "I") for letter in PLANES[plane])
        to_view = ornt_transform(stored, axcodes2ornt((right, bottom, ACROSS[plane])))
        return cls(file.name, header, voxels, plane, to_view)

    @property
    def _axes(self) -> list[int]:
        """Stored axes that run to the right, to the bottom and across."""
        return [int(axis) for axis in np.argsort(self.to_view[:, 0])]

    @property
    def num_frames(self) -> int:
        """Slices."""
        return self.voxels.shape[self._axes[2]]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a slice as shown, px."""
        return self.voxels.shape[self._axes[0]], self.voxels.shape[self._axes[1]]

    def values(self, frame: int) -> np.ndarray:
        """(H, W) of a slice as shown, after slope and intercept; may hold NaN."""
        slope, intercept = self.header.get_slope_inter()
        scaled = apply_read_scaling(self.voxels[self._index(frame)], slope, intercept)
        return apply_orientation(scaled, self.to_view)[:, :, 0].T

    def extremes(self) -> tuple[float, float]:
        """Smallest and largest finite value, after slope and intercept; both 0 where there is none."""
        stored = self.voxels if self.voxels.dtype.kind in "iu" else self.voxels[np.isfinite(self.voxels)]
        if not stored.size:
            return 0.0, 0.0
        slope, intercept = self.header.get_slope_inter()
        ends = [float(end) * (1 if slope is None else slope) + (intercept or 0) for end in (stored.min(), stored.max())]
        return min(ends), max(ends)

    def position_mm(self, frame: int) -> float:
        """Where a slice lies along the normal of all, in patient coordinates; grows with the frame."""
        affine = self.header.get_best_affine()
        right, bottom, across = (LPS_OF_RAS @ affine[:3, axis] for axis in self._axes)
        normal = normal_of(right, bottom)
        if (across * self.to_view[self._axes[2], 1]) @ normal < 0:
            normal = -normal
        return float(LPS_OF_RAS @ self._origin(affine, frame) @ normal)

    def slice_content(self, frame: int) -> bytes:
        """A NIfTI file of one slice: dtype, slope and place in the patient stay, texts and extensions do not."""
        header = self.header.copy()
        header.set_data_shape([1 if axis == self._axes[2] else side for axis, side in enumerate(self.voxels.shape)])
        for form in ("qform", "sform"):
            code = int(header[f"{form}_code"])
            if code:
                affine = getattr(header, f"get_{form}")()
                affine[:3, 3] = self._origin(affine, frame)
                getattr(header, f"set_{form}")(affine, code)
        return nifti_content(header, self.voxels[self._index(frame)].tobytes(order="F"))

    def _stored_index(self, frame: int) -> int:
        return frame if self.to_view[self._axes[2], 1] > 0 else self.num_frames - 1 - frame

    def _index(self, frame: int) -> tuple[slice, ...]:
        """Where the voxels of a slice are stored; the axis across stays, with one voxel."""
        index = [slice(None)] * 3
        index[self._axes[2]] = slice(self._stored_index(frame), self._stored_index(frame) + 1)
        return tuple(index)

    def _origin(self, affine: np.ndarray, frame: int) -> np.ndarray:
        """(3,) place of a slice's first voxel, mm, in the coordinates of `affine`."""
        return affine[:3, 3] + affine[:3, self._axes[2]] * self._stored_index(frame)


def is_nifti(content: bytes) -> bool:
    """True where the content, whatever the file's suffix, is a NIfTI file with its voxels in it, compressed or not."""
    return _header_class(_stream(content).read(348)) is not None


def read_nifti(file: ImageFile, view: ImageView) -> Image.Image:
    """One slice as an 8-bit RGB picture: by the windows asked for, or by the percentiles of the whole slice.

    Raises:
        DataError: as `NiftiVolume.of`; no such slice; a window asked of values that cannot be HU.
    """
    values = _checked(file, view).values(view.frame).astype(np.float64)
    finite = values[np.isfinite(values)]
    values = np.where(np.isfinite(values), values, finite.min() if finite.size else 0)
    if not view.windows:
        return Image.fromarray(to_8bit(percentile_window(values, finite if finite.size else values))).convert("RGB")
    check_range(file.name, view.windows, float(values.min()), float(values.max()), one_slice=True)
    return Image.fromarray(named_windows(PhysicalImage(values, "HU", "the sample's window"), view.windows, file.name))


def check_range(name: str, windows: Sequence[str], low: float, high: float, one_slice: bool) -> None:
    """Raise DataError where windows are asked of values from 0 to 1, which somebody has scaled.

    One slice of a single value is let through: it may lie beside the patient.
    """
    if windows and low >= 0 and high <= 1 and (low < high or not one_slice):
        raise _not_hu(name, windows, f"they lie between {low:g} and {high:g}")


def nifti_parts(file: ImageFile) -> tuple[Nifti1Header, bytes]:
    """Header and uncompressed content, up to the last voxel that the header promises.

    Raises:
        DataError: voxels that are missing or too many.
    """
    stream = _stream(file.content)
    kind = _header_class(stream.read(348))
    stream.seek(0)
    header = kind.from_fileobj(stream)
    promised = int(np.prod(header.get_data_shape(), dtype=object)) * header.get_data_dtype().itemsize
    if promised > MAX_VOLUME_BYTES:
        raise too_many_pixels(file.name, f"{_times(header.get_data_shape())} voxels of {promised:,} bytes together")
    stream.seek(0)
    end = header.get_data_offset() + promised
    data = stream.read(end)
    if len(data) < end or not promised:
        raise DataError(
            f"{file.name}: {len(data):,} bytes uncompressed, its header promises {end:,}",
            "a whole NIfTI file",
            "copy the file again, or take the sample out",
        )
    return header, data


def nifti_content(header: Nifti1Header, voxels: bytes) -> bytes:
    """A file of `header` without its texts and extensions, and the stored voxels; `header` is changed."""
    for field in TEXT_FIELDS:
        if field in header:  # version 2 has fewer
            header[field] = b""
    header.extensions.clear()
    header["vox_offset"] = header.single_vox_offset
    file = BytesIO()
    header.write_to(file)
    return file.getvalue().ljust(header.single_vox_offset, b"\0") + voxels


def _checked(file: ImageFile, view: ImageView) -> NiftiVolume:
    volume = NiftiVolume.of(file)
    check_frame(file.name, view.frame, volume.num_frames)
    check_pixels(file.name, *volume.size)
    intercept = volume.header.get_slope_inter()[1]
    if view.windows and volume.voxels.dtype == np.uint8 and (intercept or 0) >= 0:
        raise _not_hu(file.name, view.windows, "unsigned 8 bit without a negative intercept")
    return volume


def _plane(affine: np.ndarray, stored: np.ndarray, shape: Sequence[int]) -> str:
    """The plane in which slices are taken; see the module."""
    patient_axes = [int(axis) for axis in stored[:, 0]]
    single = [axis for axis, side in zip(patient_axes, shape, strict=True) if side == 1]
    if len(single) == 1:
        return list(PLANES)[single[0]]
    edges_mm = voxel_sizes(affine)
    longest = int(edges_mm.argmax())
    if edges_mm[longest] > THICK * np.delete(edges_mm, longest).max():
        return list(PLANES)[patient_axes[longest]]
    return "axial"


def _stream(content: bytes) -> BytesIO | gzip.GzipFile:
    return gzip.GzipFile(fileobj=BytesIO(content)) if content[:2] == GZIP else BytesIO(content)


def _header_class(start: bytes) -> type[Nifti1Header] | None:
    if start[4:12] == b"n+2\0\r\n\x1a\n":
        return Nifti2Header
    return Nifti1Header if start[344:348] == b"n+1\0" else None


def _not_hu(name: str, windows: Sequence[str], why: str) -> DataError:
    return DataError(
        f"{name}: window {', '.join(windows)} asked of a NIfTI file whose values cannot be HU ({why})",
        "the values of the CT as measured: air near -1000, water near 0",
        "convert the original CT again, or take `window` out of the sample's part",
    )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
