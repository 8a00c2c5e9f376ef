"""Slices of NIfTI files: how they lie, what they show, and files that are refused."""

import gzip
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from nifti_files import AFFINE_LPS, SHAPE_LPS, VALUES_LPS, nifti_file, stored_as

from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.nifti import NiftiVolume
from megatron_medx.data.images.view import ImageView
from megatron_medx.data.images.windows import percentile_window, to_8bit
from megatron_medx.errors import DataError

AXCODES = ["".join(code) for order in permutations(("LR", "PA", "SI")) for code in product(*order)]
"""All 48 ways to store a volume along the patient's axes."""


def gray(file, view=None):
    image = read_image(file, view or ImageView())
    assert image.mode == "RGB"
    return np.asarray(image)[:, :, 0]


def shown(values_HW):
    return to_8bit(percentile_window(values_HW))


@pytest.mark.parametrize("axcodes", AXCODES)
def test_axial_slices_are_shown_the_same_however_they_are_stored(axcodes):
    file = nifti_file("a.nii", *stored_as(axcodes))
    volume = NiftiVolume.of(file)
    assert (volume.plane, volume.num_frames, volume.size) == ("axial", 3, (5, 4))
    for frame in range(3):
        assert np.array_equal(gray(file, ImageView(frame=frame)), shown(VALUES_LPS[:, :, frame].T))
        assert abs(volume.position_mm(frame) - (-20.04 + 3 * frame)) < 1e-4


@pytest.mark.parametrize(
    ("thick", "plane", "size", "first"),
    [
        ((2, 9, 3), "coronal", (5, 3), VALUES_LPS[:, 0, ::-1].T),
        ((9, 2.5, 3), "sagittal", (4, 3), VALUES_LPS[0, :, ::-1].T),
        ((3.7, 2.5, 3), "axial", (5, 4), VALUES_LPS[:, :, 0].T),
    ],
)
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SLA", "AIR"])
def test_thick_slices_are_seen_as_they_were_acquired(thick, plane, size, first, axcodes):
    values, affine = stored_as(axcodes)
    affine[:3, :3] = np.sign(affine[:3, :3].round()) * np.array(thick)[:, None]
    file = nifti_file("a.nii", values, affine)
    assert NiftiVolume.of(file).plane == plane
    assert read_image(file).size == size
    assert np.array_equal(gray(file), shown(first))


def test_oblique_volumes_are_shown_by_their_nearest_axes():
    angle = np.radians(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = NiftiVolume.of(nifti_file("a.nii", VALUES_LPS, turn @ AFFINE_LPS))
    assert volume.plane == "axial" and volume.size == (5, 4)
    positions = [volume.position_mm(frame) for frame in range(3)]
    assert np.allclose(np.diff(positions), 3, atol=1e-4)
    # turning all about the origin keeps the distance from it along the normal
    assert abs(positions[0] + 20.04) < 1e-4


def test_slope_and_intercept_are_applied_before_the_window():
    hu = np.array([[-1350.0, -600.0, 150.0, 3000.0]])
    stored = ((hu + 1350) / 0.5).astype(np.uint16).T[:, :, None]
    file = nifti_file("a.nii", stored, AFFINE_LPS, scl_slope=0.5, scl_inter=-1350)
    assert gray(file, ImageView(("lung",))).tolist() == [[0, 128, 255, 255]]
    colored = np.asarray(read_image(file, ImageView(("lung", "bone", "brain"))))
    assert colored[0, 2].tolist() == [255, 92, 255]


def test_compressed_second_version_and_other_byte_order():
    expected = shown(VALUES_LPS[:, :, 0].T)
    swapped = nibabel.Nifti1Image(VALUES_LPS.astype(">i2"), AFFINE_LPS, nibabel.Nifti1Header(endianness=">"))
    for file in (
        nifti_file("a.nii.gz", VALUES_LPS, AFFINE_LPS),
        nifti_file("no suffix", VALUES_LPS, AFFINE_LPS, kind=nibabel.Nifti2Image),
        ImageFile("a.nii", swapped.to_bytes()),
        nifti_file("a.nii", VALUES_LPS[..., None], AFFINE_LPS),
    ):
        assert np.array_equal(gray(file), expected)


def test_one_slice_alone_is_a_volume_of_one():
    assert np.array_equal(gray(nifti_file("a.nii", VALUES_LPS[:, :, 0], AFFINE_LPS)), shown(VALUES_LPS[:, :, 0].T))
    sagittal = NiftiVolume.of(nifti_file("a.nii", VALUES_LPS[:1], AFFINE_LPS))
    assert (sagittal.plane, sagittal.num_frames, sagittal.size) == ("sagittal", 1, (4, 3))


def test_what_is_not_finite_is_black():
    values = np.linspace(-5, 5, 60, dtype=np.float32).reshape(SHAPE_LPS).copy()
    expected = shown(values[:, :, 0].T)
    values[4, 3, 1] = np.nan
    assert np.array_equal(gray(nifti_file("a.nii", values, AFFINE_LPS)), expected)
    seen = gray(nifti_file("a.nii", values, AFFINE_LPS), ImageView(frame=1))
    assert seen[3, 4] == 0 and seen.max() == 255
    assert not gray(nifti_file("a.nii", np.full((2, 2, 1), np.nan), AFFINE_LPS)).any()


@pytest.mark.parametrize(
    ("file", "found"),
    [
        (nifti_file("a.nii", np.zeros((5, 4, 3, 2)), AFFINE_LPS), r"a\.nii holds 2 volumes of 5 x 4 x 3 voxels"),
        (nifti_file("a.nii", VALUES_LPS.astype(np.complex64), AFFINE_LPS), "voxels of type complex64"),
        (nifti_file("a.nii", VALUES_LPS, AFFINE_LPS, qform_code=0, sform_code=0), "qform_code and sform_code are 0"),
        (ImageFile("a.nii", nifti_file("a.nii", VALUES_LPS, AFFINE_LPS).content[:-1]), "471 bytes .* promises 472"),
        (
            ImageFile("a.nii", gzip.compress(nifti_file("a.nii", VALUES_LPS, AFFINE_LPS).content)[:-40]),
            r"a\.nii cannot be read as an image \(EOFError",
        ),
        (
            nifti_file("a.nii", VALUES_LPS, AFFINE_LPS, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
            "promises 30000 x 30000 x 30000 voxels of 54,000,000,000,000 bytes",
        ),
    ],
)
def test_what_cannot_be_shown_is_named(file, found):
    with pytest.raises(DataError, match=found):
        read_image(file)


def test_slices_are_counted_from_0():
    file = nifti_file("a.nii", VALUES_LPS, AFFINE_LPS)
    with pytest.raises(DataError, match=r"a\.nii has 3 frames, asked is frame 3"):
        read_image(file, ImageView(frame=3))


def test_windows_are_refused_on_values_that_cannot_be_hu():
    lung = ImageView(("lung",))
    scaled = nifti_file("a.nii", np.linspace(0, 1, 60).reshape(SHAPE_LPS), AFFINE_LPS)
    with pytest.raises(DataError, match=r"a\.nii: window lung asked of .* cannot be HU \(they lie between 0 and 0\."):
        read_image(scaled, lung)
    bytes_only = nifti_file("a.nii", VALUES_LPS.astype(np.uint8), AFFINE_LPS)
    with pytest.raises(DataError, match=r"cannot be HU \(unsigned 8 bit"):
        read_image(bytes_only, lung)
    assert gray(nifti_file("a.nii", VALUES_LPS.astype(np.uint8), AFFINE_LPS, scl_slope=8, scl_inter=-1000), lung).any()
    assert gray(nifti_file("a.nii", np.zeros(SHAPE_LPS, np.int16), AFFINE_LPS), lung).tolist() == [[230] * 5] * 4
