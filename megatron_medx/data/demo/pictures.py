"""Real medical images out of pip packages, and what is certain about each.

The table says what is taken; the four ways of taking it are below. DICOM stays DICOM, so that training reads
real files: large ones are reduced by block means (the stored bits and the window stay), of a cine or an enhanced
series single frames are written as files of their own. Modality is what the header says and the picture shows; a region
is given only where the header or the picture leaves no doubt. Files with a hospital's name burned in are left out.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from megatron_medx.errors import DataError

MODALITY_NAMES = {
    "CR": "X-ray",
    "CT": "CT",
    "MR": "MRI",
    "US": "Ultrasound",
    "NM": "Nuclear medicine",
    "FUNDUS": "Fundus photography",
    "HE": "H&E histology",
    "IHC": "Immunohistochemistry",
}
"""Modality code of a sample -> the answer to the question for it."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of width and height."""

WHOLE: Box = (0, 0, 1, 1)
LEFT, RIGHT, TOP, BOTTOM = (0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 0.5), (0, 0.5, 1, 1)
QUARTERS: dict[str, Box] = {
    "nw": (0, 0, 0.5, 0.5),
    "ne": (0.5, 0, 1, 0.5),
    "sw": (0, 0.5, 0.5, 1),
    "se": (0.5, 0.5, 1, 1),
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of the demo and where it comes from."""

    name: str
    modality: str
    """Key of MODALITY_NAMES."""
    region: str
    """Body region; empty where it is not certain."""
    package: str
    """Key of PACKAGES."""
    file: str
    """Path inside the package."""
    reduce: int = 1
    """Side in px of the blocks that are averaged (DICOM)."""
    frame: int | None = None
    """Frame that is written as a file of its own (DICOM)."""
    box: Box = WHOLE
    """Part of the picture that is taken."""

    @property
    def path(self) -> str:
        """Where the demo keeps it, relative to the data folder."""
        return f"images/{self.name}{'.dcm' if self.file.endswith('.dcm') else '.png'}"


PACKAGES = {
    "pydicom": ("pydicom", "data/test_files"),
    "pydicom-data": ("data_store", "data"),
    "scikit-image": ("skimage", "data"),
    "stardist": ("stardist", "data/images"),
}
"""Distribution -> (importable module, folder in it)."""


def _pictures() -> tuple[Picture, ...]:
    chest = {"": WHOLE, "-left": LEFT, "-right": RIGHT, "-top": TOP, "-bottom": BOTTOM}
    leg = {"": WHOLE, "-top": TOP, "-bottom": BOTTOM}
    tiles = {"": WHOLE, **{f"-{name}": box for name, box in QUARTERS.items()}}
    return (
        *(
            Picture(f"cr-chest{s}", "CR", "Chest", "pydicom-data", "RG1_UNCR.dcm", reduce=4, box=b)
            for s, b in chest.items()
        ),
        *(
            Picture(f"cr-leg{s}", "CR", "Lower leg", "pydicom-data", "RG3_UNCR.dcm", reduce=4, box=b)
            for s, b in leg.items()
        ),
        Picture("ct-head", "CT", "Head", "pydicom-data", "693_J2KR.dcm"),
        Picture("ct-head-base", "CT", "Head", "pydicom", "J2K_pixelrep_mismatch.dcm"),
        Picture("ct-abdomen", "CT", "Abdomen", "pydicom-data", "explicit_VR-UN.dcm"),
        Picture("ct-spine", "CT", "", "pydicom-data", "bad_sequence.dcm"),
        Picture("ct-vertebra", "CT", "", "pydicom", "CT_small.dcm"),
        Picture("mr-shoulder", "MR", "Shoulder", "pydicom-data", "MR2_UNCR.dcm", reduce=2),
        Picture("mr-abdomen", "MR", "Abdomen", "pydicom-data", "MR-SIEMENS-DICOM-WithOverlays.dcm"),
        Picture("mr-abdomen-crop", "MR", "Abdomen", "pydicom", "examples_overlay.dcm"),
        Picture("mr-detail", "MR", "", "pydicom", "MR_small.dcm"),
        *(Picture(f"mr-head-{i}", "MR", "Head", "pydicom-data", "emri_small.dcm", frame=i) for i in (0, 2, 4, 6, 8)),
        Picture("us-sector", "US", "", "pydicom-data", "OBXXXX1A_rle.dcm"),
        Picture("us-heart", "US", "Heart", "pydicom-data", "JPGLosslessP14SV1_1s_1f_8b.dcm"),
        Picture("us-doppler", "US", "", "pydicom-data", "color-pl.dcm"),
        *(
            Picture(f"us-cine-{i:02d}", "US", "Heart", "pydicom", "examples_ybr_color.dcm", frame=i)
            for i in (0, 10, 20, 29)
        ),
        Picture("nm-bone", "NM", "Whole body", "pydicom-data", "JPEG-LL.dcm"),
        Picture("nm-bone-smooth", "NM", "Whole body", "pydicom-data", "JPEG2000_UNC.dcm"),
        Picture("nm-bone-12bit", "NM", "Whole body", "pydicom", "JPGExtended.dcm"),
        *(Picture(f"fundus{s}", "FUNDUS", "Eye", "scikit-image", "retina.jpg", box=b) for s, b in tiles.items()),
        Picture("fundus-detail", "FUNDUS", "Eye", "scikit-image", "microaneurysms.png"),
        *(Picture(f"ihc{s}", "IHC", "", "scikit-image", "ihc.png", box=b) for s, b in tiles.items()),
        *(Picture(f"he{s}", "HE", "", "stardist", "histo.jpg", box=b) for s, b in tiles.items()),
    )


PICTURES = _pictures()

HELD_OUT_PICTURES = (
    *(Picture(f"mr-head-{i}", "MR", "Head", "pydicom-data", "emri_small.dcm", frame=i) for i in (1, 3, 5, 7, 9)),
    *(Picture(f"us-cine-{i:02d}", "US", "Heart", "pydicom", "examples_ybr_color.dcm", frame=i) for i in (5, 15, 25)),
)
"""Not trained on: frames between those that are, so of the same patients."""

MAX_SIDE_PX = 512
"""Longest side of a picture that is written as PNG; training scales far below it."""


def write_picture(picture: Picture, folder: Path) -> None:
    """Take one picture out of its package and write it to `folder / picture.path`.

    Raises:
        DataError: the package or its file is missing.
    """
    source = package_folder(picture.package) / picture.file
    if not source.is_file():
        raise DataError(
            f"no file {source}",
            f"{picture.file} of the package {picture.package}",
            "install the versions in constraints.txt",
        )
    target = folder / picture.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if not picture.path.endswith(".dcm"):
        _write_png(source, target, picture.box)
    elif picture.reduce == 1 and picture.frame is None and picture.box == WHOLE:
        target.write_bytes(source.read_bytes())
    else:
        _write_dicom(source, target, picture)


def package_folder(package: str) -> Path:
    """Data folder of an installed package.

    Raises:
        DataError: it is not installed.
    """
    module, folder = PACKAGES[package]
    found = find_spec(module)
    if found is None or found.origin is None:
        raise DataError(f"the package {package} is not installed", "it, for the demo data", f"pip install {package}")
    return Path(found.origin).parent / folder


def _write_png(source: Path, target: Path, box: Box) -> None:
    with Image.open(source) as image:
        part = image.crop(_corners(box, *image.size))
        part.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
        part.save(target)


def _write_dicom(source: Path, target: Path, picture: Picture) -> None:
    """Write a part, a reduced version or a frame of a DICOM image as a new, uncompressed DICOM file.

    Stored values keep their bits and their meaning: only rows, columns, spacing and identity change.
    """
    header = pydicom.dcmread(source)
    values = pixel_array(header, index=picture.frame or 0)
    left, top, right, bottom = _corners(picture.box, values.shape[1], values.shape[0])
    values = _block_mean(values[top:bottom, left:right], picture.reduce)
    header.Rows, header.Columns = values.shape[:2]
    if values.ndim == 3:
        header.PhotometricInterpretation, header.PlanarConfiguration = "RGB", 0  # pydicom decodes YBR to RGB
    if "PixelSpacing" in header:
        header.PixelSpacing = [spacing * picture.reduce for spacing in header.PixelSpacing]
    for name in (
        "NumberOfFrames",
        "PerFrameFunctionalGroupsSequence",
        "SharedFunctionalGroupsSequence",
        "FrameIncrementPointer",
    ):
        if name in header:
            del header[name]
    header.ImageType = ["DERIVED", *list(header.get("ImageType", ["ORIGINAL", "PRIMARY"]))[1:]]
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # a function of what was taken, so that building twice writes the same bytes
    header.SOPInstanceUID = generate_uid(entropy_srcs=[picture.name, picture.file])
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    raw = values.tobytes()
    header.PixelData = raw + b"\0" * (len(raw) % 2)
    header["PixelData"].is_undefined_length = False
    header["PixelData"].VR = "OB" if values.itemsize == 1 else "OW"
    header.save_as(target, enforce_file_format=True)


def _block_mean(values: np.ndarray, side: int) -> np.ndarray:
    """Mean of side x side blocks in the stored type; rows and columns that fill no block are dropped."""
    if side == 1:
        return np.ascontiguousarray(values)
    rows, columns = values.shape[0] // side, values.shape[1] // side
    blocks = values[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.round(blocks.mean(axis=(1, 3))).astype(values.dtype)


def _corners(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return round(left * width), round(top * height), round(right * width), round(bottom * height)
