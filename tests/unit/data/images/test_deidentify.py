"""Files after the removal of what identifies people: same pictures, nothing else, and the text for the model."""

import gzip
from io import BytesIO

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import dicom_file, pydicom_files, saved
from nifti_files import AFFINE_LPS, VALUES_LPS, nifti_file
from pydicom.datadict import tag_for_keyword

from megatron_medx.data.images.deidentify import patient_key, safe_description, strip_dicom, strip_nifti
from megatron_medx.data.images.dicom import is_dicom
from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.kept_attributes import KEPT
from megatron_medx.data.images.view import AS_STORED, ImageView
from megatron_medx.data.images.volumes import read_volume
from megatron_medx.errors import DataError

VALUES = np.arange(6, dtype=np.uint16).reshape(2, 3)

NAME = "Doe^Jane"

MAX_BYTES = 100_000
"""The larger files, most of them in several encodings, would take three quarters of the time."""


def read_back(content):
    return pydicom.dcmread(BytesIO(content))


def readable_files():
    for file in pydicom_files():
        if is_dicom(file.content) and len(file.content) < MAX_BYTES:
            try:
                yield file, np.asarray(read_image(file, allow_burned_in=True))
            except DataError:
                continue


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
def test_every_picture_of_pydicom_stays_as_it_is():
    num_files = 0
    for file, picture in readable_files():
        content, dropped = strip_dicom(file.content)
        stripped = ImageFile(file.name, content)
        assert np.array_equal(np.asarray(read_image(stripped, allow_burned_in=True)), picture), file.name
        before, after = read_back(file.content), read_back(content)
        assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
        assert after.get("PixelData") == before.get("PixelData"), file.name
        last = int(before.get("NumberOfFrames") or 1) - 1
        if 0 < last < 20:
            view = ImageView(frame=last)
            frames = [np.asarray(read_image(one, view, allow_burned_in=True)) for one in (file, stripped)]
            assert np.array_equal(*frames), file.name
        kept = {element.keyword for element in after.iterall()}
        assert kept <= KEPT, file.name
        assert {one.keyword for one in before if one.keyword and one.value} - KEPT <= set(dropped), file.name
        assert strip_dicom(content) == (content, []), file.name
        num_files += 1
    assert num_files > 80


def test_kept_names_are_in_the_dictionary():
    assert all(tag_for_keyword(keyword) for keyword in KEPT)


def identified():
    """A file with the name of its patient wherever one may stand."""
    header = read_back(dicom_file("a.dcm", VALUES, Modality="CT", BodyPartExamined="CHEST").content)
    header.preamble = NAME.encode().ljust(128, b"\0")
    header.file_meta.SourceApplicationEntityTitle = NAME
    header.PatientName = header.InstitutionName = header.LUTExplanation = header.ContrastBolusAgent = NAME
    header.PatientID = ""
    header.StudyInstanceUID = header.SOPInstanceUID = "1.2.840.99.7"
    header.StudyDate = "20261122"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "DOE"]
    header.ViewPosition = "DOE"
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = 1, -1024, NAME
    header.private_block(0x11, NAME, create=True).add_new(1, "LO", NAME)
    header.add_new(0x60000022, "LO", NAME)
    window, group = pydicom.Dataset(), pydicom.Dataset()
    window.WindowCenter, window.WindowWidth, window.WindowCenterWidthExplanation = 2, 4, NAME
    group.FrameVOILUTSequence = [window]
    group.OperatorsName = NAME
    header.SharedFunctionalGroupsSequence = [group]
    return saved("a.dcm", header)


def test_nothing_but_what_is_listed_stays():
    file = identified()
    content, dropped = strip_dicom(file.content)
    for trace in (b"Doe", b"DOE", b"Jane", b"2026", b"1.2.840.99"):
        assert trace in file.content or trace == b"Jane"
        assert trace not in content
    assert dropped == [
        *(
            "ContrastBolusAgent",
            "ImageType",
            "InstitutionName",
            "LUTExplanation",
            "OperatorsName",
            "OverlayDescription",
        ),
        *("PatientName", "RescaleType", "StudyDate", "StudyInstanceUID", "ViewPosition"),
        *("WindowCenterWidthExplanation", "private"),
    ]
    after = read_back(content)
    assert after.ImageType == ["ORIGINAL", "PRIMARY", "AXIAL"] and after.BodyPartExamined == "CHEST"
    assert after.ContrastBolusAgent == "YES" and after.RescaleType == "US"
    assert after.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0].WindowCenter == 2
    assert np.array_equal(np.asarray(read_image(ImageFile("b", content))), np.asarray(read_image(file)))
    # an unknown unit is no HU, before and after
    for one in (file, ImageFile("a.dcm", content)):
        with pytest.raises(DataError, match="not in HU"):
            read_image(one, ImageView(("lung",)))


def test_flags_and_places_stay():
    fields = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "SeriesInstanceUID": "1.2", "BurnedInAnnotation": "YES"}
    files = [dicom_file(f"{at}", VALUES + at, **fields, ImagePositionPatient=[0, 0, at]) for at in (3, 1)]
    stripped = [ImageFile(file.name, strip_dicom(file.content)[0]) for file in files]
    assert [one.position_mm for one in read_volume(stripped, AS_STORED).slices] == [1, 3]
    with pytest.raises(DataError, match="BurnedInAnnotation is YES"):
        read_image(stripped[0])
    first, second = (read_back(file.content).SOPInstanceUID for file in stripped)
    assert first != second and first.is_valid and second.is_valid


def described(**fields):
    return safe_description(dicom_file("a.dcm", VALUES, **fields).content)


def test_descriptions_are_of_known_words():
    axial = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    assert described(Modality="CT", BodyPartExamined="CHEST", **axial) == "CT, CHEST, axial"
    assert (
        described(Modality="CT", BodyPartExamined="CHEST ", ContrastBolusAgent="Jopamiro") == "CT, CHEST, with contrast"
    )
    assert (
        described(Modality="DX", BodyPartExamined="KNEE", ImageLaterality="L", ViewPosition="AP")
        == "DX, KNEE, left, AP"
    )
    assert described(Modality="DOE", BodyPartExamined="JANE", ViewPosition="DOE", Laterality="D") == ""
    assert described(Modality="OT", ContrastBolusAgent="none") == ""
    file = identified()
    assert (
        safe_description(file.content) == safe_description(strip_dicom(file.content)[0]) == "CT, CHEST, with contrast"
    )


def test_patient_keys_join_a_patients_files_and_no_others():
    def key(secret=b"secret", **fields):
        return patient_key(dicom_file("a.dcm", VALUES, **fields).content, secret)

    jane = key(PatientID="17", StudyInstanceUID="1.2")
    assert len(jane) == 32 and jane == key(PatientID="17 ", StudyInstanceUID="1.3")
    others = [
        key(PatientID="17", IssuerOfPatientID="north"),
        key(PatientID="17", secret=b"other"),
        key(PatientID="18"),
        key(StudyInstanceUID="1.7"),
        key(StudyInstanceUID="17"),
    ]
    assert len({jane, *others}) == 6
    assert key() == key(PatientID="", StudyInstanceUID="") == ""
    with pytest.raises(ValueError, match="empty key"):
        key(secret=b"")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_texts_of_nifti_headers_go(name, kind):
    image = kind(VALUES_LPS, AFFINE_LPS)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    image.header["descrip"], image.header["intent_name"] = b"Doe", b"Jane"
    image.header["cal_max"] = 7
    content = image.to_bytes()
    if name.endswith(".gz"):
        named = BytesIO()
        with gzip.GzipFile("doe_jane.nii", "wb", fileobj=named) as file:
            file.write(content)
        content = named.getvalue()
        assert b"doe_jane" in content
    file = ImageFile(name, content)
    stripped, dropped = strip_nifti(content)
    assert dropped == ["descrip", "extensions", "intent_name"]
    assert stripped[:2] == content[:2]
    plain = gzip.decompress(stripped) if name.endswith(".gz") else stripped
    assert b"Doe" not in plain and b"Jane" not in plain and b"doe" not in stripped
    after = kind.from_bytes(plain)
    assert np.array_equal(after.affine, kind.from_bytes(image.to_bytes()).affine) and after.header["cal_max"] == 7
    for frame in range(3):
        pictures = [np.asarray(read_image(one, ImageView(frame=frame))) for one in (file, ImageFile(name, stripped))]
        assert np.array_equal(*pictures)
    assert strip_nifti(stripped) == (stripped, [])


def test_several_nifti_volumes_stay_several():
    file = nifti_file("a.nii", np.stack([VALUES_LPS, VALUES_LPS + 1], axis=-1), AFFINE_LPS, scl_slope=2, scl_inter=1)
    after = nibabel.Nifti1Image.from_bytes(strip_nifti(file.content)[0])
    assert np.array_equal(after.get_fdata()[..., 1], (VALUES_LPS + 1) * 2 + 1)
