"""Slices of volumes: their order, their places, and volumes that are none."""

from io import BytesIO

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import dicom_file, saved
from nifti_files import AFFINE_LPS, VALUES_LPS, nifti_file, stored_as

from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.view import AS_STORED, ImageView
from megatron_medx.data.images.volumes import choose_slices, position_text, read_volume
from megatron_medx.errors import DataError

AXIAL = [1, 0, 0, 0, 1, 0]


def slice_file(name, corner, cosines=AXIAL, **fields):
    values = np.arange(6, dtype=np.uint16).reshape(2, 3)
    fields = {"SeriesInstanceUID": "1.2.7", "ImageOrientationPatient": cosines} | fields
    return dicom_file(name, values, **fields, ImagePositionPatient=corner)


def test_slices_of_a_series_go_from_foot_to_head():
    files = [slice_file(f"{at}.dcm", [7, -3, at]) for at in (12.46, -5, 3.72, -13.77)]
    volume = read_volume(files, ImageView(("lung",), 5))
    assert [one.file.name for one in volume.slices] == ["-13.77.dcm", "-5.dcm", "3.72.dcm", "12.46.dcm"]
    assert [one.position_mm for one in volume.slices] == [-13.8, -5, 3.7, 12.5]
    assert all(one.file in files and one.view == ImageView(("lung",)) for one in volume.slices)
    assert abs(volume.spacing_mm - 8.74) < 1e-9 and volume.num_gaps == volume.num_localizers == 0


@pytest.mark.parametrize(
    ("cosines", "along", "order"),
    [
        ([1, 0, 0, 0, 0, -1], (0, 1, 0), [-1, 2, 4]),  # coronal: front to back
        ([0, -1, 0, 0, 0, -1], (1, 0, 0), [-1, 2, 4]),  # sagittal: right to left
        ([1, 0, 0, 0, 0.8, -0.6], (0, 0.6, 0.8), [-1, 2, 4]),  # tilted
        ([-1, 0, 0, 0, 1, 0], (0, 0, 1), [-1, 2, 4]),
    ],
)
def test_positions_are_along_the_normal(cosines, along, order):
    # the corner also moves in the plane, as in an angled series; that is no position
    corners = {at: (np.array(along) * at + np.array(cosines[:3]) * 10 * at).tolist() for at in (4, -1, 2)}
    files = [slice_file(f"{at}.dcm", corner, cosines) for at, corner in corners.items()]
    assert [one.position_mm for one in read_volume(files, AS_STORED).slices] == order


def test_missing_slices_are_counted():
    heights = [0, 5, 10, 20, 25, 30, 45, 52]  # 15 and 35, 40 are missing; 7 is no gap
    volume = read_volume([slice_file(f"{at}.dcm", [0, 0, at]) for at in heights], AS_STORED)
    assert (volume.spacing_mm, volume.num_gaps) == (5, 2)
    alone = read_volume([slice_file("a.dcm", [0, 0, -0.04])], AS_STORED)
    assert (len(alone.slices), alone.spacing_mm, alone.num_gaps) == (1, 0, 0)


def test_localizers_are_left_out():
    scout = slice_file("scout.dcm", [0, 0, 0], [1, 0, 0, 0, 0, -1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    volume = read_volume([scout, slice_file("a.dcm", [0, 0, 1])], AS_STORED)
    assert [one.file.name for one in volume.slices] == ["a.dcm"] and volume.num_localizers == 1
    with pytest.raises(DataError, match=r"scout\.dcm: all 1 files of the volume are localizers"):
        read_volume([scout], AS_STORED)


def enhanced(corners):
    header = pydicom.dcmread(BytesIO(dicom_file("a", np.arange(12, dtype=np.uint16).reshape(4, 3) * 20).content))
    header.Rows, header.NumberOfFrames = 2, 2

    def group(**fields):
        group = pydicom.Dataset()
        for macro, field, value in fields.values():
            item = pydicom.Dataset()
            setattr(item, field, value)
            setattr(group, macro, [item])
        return group

    header.SharedFunctionalGroupsSequence = [
        group(orientation=("PlaneOrientationSequence", "ImageOrientationPatient", AXIAL))
    ]
    header.PerFrameFunctionalGroupsSequence = [
        group(position=("PlanePositionSequence", "ImagePositionPatient", corner)) for corner in corners
    ]
    return saved("enhanced.dcm", header)


def test_frames_of_an_enhanced_file_are_slices():
    file = enhanced([[0, 0, 9.5], [0, 0, 2]])
    volume = read_volume([file], AS_STORED)
    assert [(one.file.name, one.position_mm) for one in volume.slices] == [
        ("enhanced.frame-1.dcm", 2),
        ("enhanced.frame-0.dcm", 9.5),
    ]
    for one, frame in zip(volume.slices, (1, 0), strict=True):
        assert one.view == AS_STORED
        assert np.array_equal(np.asarray(read_image(one.file)), np.asarray(read_image(file, ImageView(frame=frame))))
        assert read_volume([one.file], AS_STORED).slices[0].position_mm == one.position_mm
    with pytest.raises(DataError, match=r"one place, 2\.0 mm \(enhanced\.frame-0\.dcm, enhanced\.frame-1\.dcm\)"):
        read_volume([enhanced([[0, 0, 2], [0, 0, 2.001]])], AS_STORED)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "a volume of no files"),
        (
            [slice_file("a.dcm", [0, 0, 0]), slice_file("b.dcm", [0, 0, 1], SeriesInstanceUID="1.9")],
            r"a volume of 2 DICOM series \(a\.dcm, b\.dcm\)",
        ),
        (
            [slice_file("a.dcm", [0, 0, 0]), slice_file("b.dcm", [0, 0, 1], [1, 0, 0, 0, 0.98, 0.2])],
            r"slices in different planes \(a\.dcm, b\.dcm\)",
        ),
        (
            [slice_file("a.dcm", [0, 0, 4]), slice_file("b.dcm", [3, 0, 1]), slice_file("c.dcm", [0, 0, 1])],
            r"in one place, 1\.0 mm \(b\.dcm, c\.dcm\)",
        ),
        ([dicom_file("a.dcm", np.zeros((2, 3), np.uint16))], r"a\.dcm: no sound ImagePositionPatient"),
        ([slice_file("a.dcm", [0, 0, 4], [0] * 6)], r"a\.dcm: no sound ImagePositionPatient"),
        ([slice_file("a.dcm", [0, 0, 4]), ImageFile("notes.txt", b"seen by")], r"notes\.txt is neither a NIfTI nor"),
        ([ImageFile("a.dcm", b"")], r"a\.dcm is empty \(0 bytes\)"),
        (
            [nifti_file("a.nii", VALUES_LPS, AFFINE_LPS), nifti_file("b.nii", VALUES_LPS, AFFINE_LPS)],
            r"a volume of 2 files with a NIfTI file among them \(a\.nii, b\.nii",
        ),
    ],
)
def test_what_is_no_volume_is_named(files, found):
    with pytest.raises(DataError, match=found):
        read_volume(files, AS_STORED)


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "SLA", "AIR", "PSR"])
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_slices_of_a_nifti_volume_are_files_of_their_own(axcodes, name):
    values, affine = stored_as(axcodes)
    file = nifti_file(name, values, affine, scl_slope=0.5, scl_inter=-3, descrip=b"DOE^JANE")
    volume = read_volume([file], ImageView(("bone",)))
    assert [one.position_mm for one in volume.slices] == [-20.0, -17.0, -14.0]
    assert abs(volume.spacing_mm - 3) < 1e-5 and volume.num_gaps == 0
    for frame, one in enumerate(volume.slices):
        assert one.file.name == f"ct.slice-{frame}.nii" and one.view == ImageView(("bone",))
        for windows in ((), ("bone",)):
            whole = np.asarray(read_image(file, ImageView(windows, frame)))
            assert np.array_equal(np.asarray(read_image(one.file, ImageView(windows))), whole)
        assert read_image(one.file).size == (5, 4)
        image = nibabel.Nifti1Image.from_bytes(one.file.content)
        assert image.get_data_dtype() == values.dtype and image.dataobj.slope == 0.5 and image.dataobj.inter == -3
        assert b"DOE" not in one.file.content
        # nibabel places its voxels where the volume has them
        assert read_volume([one.file], AS_STORED).slices[0].position_mm == one.position_mm
        corner = image.affine @ [0, 0, 0, 1]
        index = np.linalg.solve(affine, corner)[:3]
        assert np.allclose(index, index.round(), atol=1e-4)
        assert image.dataobj[0, 0, 0] == values[tuple(index.round().astype(int))] * 0.5 - 3


def test_a_window_on_a_scaled_nifti_volume_is_refused():
    mask = nifti_file("a.nii", (VALUES_LPS > 0).astype(np.int16), AFFINE_LPS)
    with pytest.raises(DataError, match=r"a\.nii: window bone asked of .* \(they lie between 0 and 1\)"):
        read_volume([mask], ImageView(("bone",)))
    assert len(read_volume([mask], AS_STORED).slices) == 3
    scaled = np.linspace(0, 1, 60).reshape(VALUES_LPS.shape)
    scaled[:, 0, :] = np.nan
    with pytest.raises(DataError, match=r"they lie between 0\.\d+ and 1\)"):
        read_volume([nifti_file("a.nii", scaled, AFFINE_LPS)], ImageView(("bone",)))
    # stored from 0 to 1, but not measured so
    falling = nifti_file("a.nii", (VALUES_LPS > 0).astype(np.int16), AFFINE_LPS, scl_slope=-1000, scl_inter=0)
    assert len(read_volume([falling], ImageView(("bone",))).slices) == 3


@pytest.mark.parametrize(
    ("num", "at_most", "chosen"),
    [(10, 4, [0, 3, 6, 9]), (10, 3, [0, 5, 9]), (10, 1, [5]), (7, 9, list(range(7))), (5, 2, [0, 4]), (0, 3, [])],
)
def test_slices_are_chosen_evenly(num, at_most, chosen):
    assert choose_slices(num, at_most) == chosen


def test_chosen_slices_are_as_even_as_whole_numbers_can_be():
    for num in range(2, 60):
        for at_most in range(2, num + 1):
            chosen = choose_slices(num, at_most)
            steps = np.diff(chosen)
            assert (chosen[0], chosen[-1], len(chosen)) == (0, num - 1, at_most)
            assert steps.max() - steps.min() <= 1 and steps.min() >= 1
    with pytest.raises(ValueError, match="0 slices of 5"):
        choose_slices(5, 0)


def test_the_text_of_a_position():
    assert [position_text(at) for at in (12.46, -3, -0.04, 1000.05)] == ["12.5 mm", "-3.0 mm", "0.0 mm", "1000.0 mm"]
