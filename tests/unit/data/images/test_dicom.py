"""Pictures out of DICOM files: units, windows, color spaces, frames, and files that hold none."""

from io import BytesIO

import numpy as np
import pydicom
import pytest
from dicom_files import dicom_file, pydicom_file, saved

from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.view import MAX_PIXELS, ImageView
from megatron_medx.errors import DataError


def gray(file):
    image = read_image(file)
    assert image.mode == "RGB"
    return np.asarray(image)[:, :, 0].tolist()


VALUES = np.array([[0, 1000, 1100, 1200, 4000]], dtype=np.uint16)


def test_window_is_applied_in_physical_units():
    # stored 1000..1200 are -24..176 HU; the window of center 76, width 200 shows -24 as black and 176 as white
    fields = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 76, "WindowWidth": 200}
    black, low, middle, high, white = gray(dicom_file("a.dcm", VALUES, **fields))[0]
    assert (black, white) == (0, 255)
    assert low <= 1 and abs(middle - 128) <= 1 and high >= 254


def test_first_of_several_windows_is_used():
    several = dicom_file("a", VALUES, WindowCenter=[1100, 9], WindowWidth=[200, 9])
    one = dicom_file("b", VALUES, WindowCenter=1100, WindowWidth=200)
    assert gray(several) == gray(one)


def test_monochrome1_is_inverted_after_the_window():
    window = {"WindowCenter": 1100, "WindowWidth": 200}
    plain = np.array(gray(dicom_file("a", VALUES, **window)))
    inverted = np.array(gray(dicom_file("b", VALUES, **window, PhotometricInterpretation="MONOCHROME1")))
    assert np.abs(plain + inverted - 255).max() <= 1


def test_percentiles_where_no_window_is_stored():
    ramp = np.arange(1000, dtype=np.uint16).reshape(20, 50) + 300
    shown = np.array(gray(dicom_file("a", ramp))).ravel()
    assert shown[0] == 0 and shown[-1] == 255 and abs(shown[500] - 128) <= 1
    # a window of width 0 is none
    assert gray(dicom_file("b", ramp, WindowCenter=3, WindowWidth=0)) == shown.reshape(20, 50).tolist()


def test_padding_does_not_widen_the_percentile_window():
    ramp = np.arange(1000, dtype=np.uint16).reshape(20, 50) + 300
    ramp[:5] = 65535
    shown = np.array(gray(dicom_file("a", ramp, PixelPaddingValue=65535)))
    assert shown[5, 0] <= 2 and shown[-1, -1] == 255


def test_flat_image_is_black():
    assert gray(dicom_file("a", np.full((2, 3), 7, dtype=np.uint16))) == [[0, 0, 0]] * 2


def test_dicom_color():
    color = np.zeros((2, 2, 3), dtype=np.uint8)
    color[0, 0] = (200, 100, 50)
    assert np.array_equal(np.asarray(read_image(dicom_file("a", color))), color)


@pytest.mark.parametrize(
    ("name", "colors"),
    # top bar of pydicom's test pattern is red in each of its color spaces
    [("SC_rgb_dcmtk_+eb+cy+n1.dcm", (255, 0, 0)), ("SC_rgb_rle_16bit.dcm", (255, 0, 0))],
)
def test_color_spaces_become_rgb(name, colors):
    pixel = np.asarray(read_image(pydicom_file(name)))[5, 50]
    assert np.abs(pixel.astype(int) - colors).max() <= 3


def test_palette_and_lookup_tables():
    palette = read_image(pydicom_file("OBXXXX1A_rle.dcm"))
    assert palette.size == (800, 600) and np.asarray(palette).std() > 10
    ramp = pydicom_file("vlut_04.dcm")
    # a ramp through a VOI LUT of slope +1 is the ramp
    shown = np.asarray(read_image(ramp))[:, :, 0]
    assert np.array_equal(shown, pydicom.dcmread(BytesIO(ramp.content)).pixel_array)


def test_content_decides_not_the_suffix():
    file = dicom_file("a.png", VALUES)
    assert read_image(file).size == (5, 1)


def test_dicom_without_pixels_is_named():
    with pytest.raises(DataError, match="a DICOM file of modality RTPLAN without pixel data"):
        read_image(pydicom_file("rtplan.dcm"))


CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


def test_named_windows_are_in_hu_and_bright_is_high():
    # stored 0 is -1024 HU; lung shows -1350..150 HU, bone -500..1300, brain 0..80
    hu = np.array([[-1024, -600, 0, 40, 150, 1300]])
    file = dicom_file("a.dcm", (hu + 1024).astype(np.uint16), **CT)
    lung = np.asarray(read_image(file, ImageView(("lung",))))
    assert lung[0, :, 0].tolist() == [55, 128, 230, 236, 255, 255]
    assert (lung == lung[:, :, :1]).all()
    colored = np.asarray(read_image(file, ImageView(("lung", "bone", "brain"))))
    assert np.array_equal(colored[:, :, 0], lung[:, :, 0])
    assert colored[0, :, 1].tolist() == [0, 0, 71, 76, 92, 255]
    assert colored[0, :, 2].tolist() == [0, 0, 0, 128, 255, 255]
    inverted = dicom_file("b.dcm", (hu + 1024).astype(np.uint16), **CT, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(np.asarray(read_image(inverted, ImageView(("lung",)))), lung)


@pytest.mark.parametrize(
    ("fields", "states"),
    [
        ({"Modality": "MR", "RescaleSlope": 1, "RescaleIntercept": 0}, "it states none"),
        ({"Modality": "CT"}, "it states none"),
        (CT | {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "it states none"),
        (CT | {"RescaleType": "US"}, "it states none"),
        (CT | {"RescaleType": "mgml"}, "RescaleType says mgml"),
        (CT | {"PhotometricInterpretation": "PALETTE COLOR"}, "it states none"),
    ],
)
def test_windows_in_hu_are_refused_on_other_units(fields, states):
    file = dicom_file("a.dcm", VALUES, **fields)
    with pytest.raises(DataError, match=rf"a\.dcm: window bone asked of an image that is not in HU \({states}\)"):
        read_image(file, ImageView(("bone",)))


def test_a_rescale_type_of_hu_is_enough():
    file = dicom_file("a.dcm", VALUES, **(CT | {"Modality": "OT", "RescaleType": "HU"}))
    assert read_image(file, ImageView(("bone",))).size == (5, 1)


def enhanced():
    """Two frames of one stored picture; the first is rescaled by -1024 (shared), the second by -2000 (its own)."""
    file = dicom_file("enhanced.dcm", np.stack([VALUES[0], VALUES[0]]), Modality="CT")
    header = pydicom.dcmread(BytesIO(file.content))
    header.Rows, header.NumberOfFrames = 1, 2

    def rescaled(intercept):
        item, group = pydicom.Dataset(), pydicom.Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = 1, intercept, "HU"
        group.PixelValueTransformationSequence = [item]
        return group

    header.SharedFunctionalGroupsSequence = [rescaled(-1024)]
    header.PerFrameFunctionalGroupsSequence = [pydicom.Dataset(), rescaled(-2000)]
    return saved("enhanced.dcm", header)


def test_frames_of_enhanced_files_have_their_own_rescale():
    # bone: -500..1300 HU; stored 1200 is 176 HU in the first frame and -800 in the second, stored 4000 is 2000 there
    file = enhanced()
    first, second = (np.asarray(read_image(file, ImageView(("bone",), frame)))[0, :, 0].tolist() for frame in (0, 1))
    assert first == [0, 67, 82, 96, 255]
    assert second == [0, 0, 0, 0, 255]


def test_frames_are_counted_from_0():
    file = pydicom_file("examples_ybr_color.dcm")
    assert read_image(file).size == (320, 240)
    first, last = (np.asarray(read_image(file, ImageView(frame=frame))) for frame in (0, 29))
    frames = pydicom.pixels.pixel_array(BytesIO(file.content))
    assert np.array_equal(first, frames[0]) and np.array_equal(last, frames[29]) and not np.array_equal(first, last)
    with pytest.raises(DataError, match=r"color\.dcm has 30 frames, asked is frame 30\n.*from 0 to 29"):
        read_image(file, ImageView(frame=30))


def test_a_header_that_promises_too_much_is_refused_before_pixels_are_read():
    side = int(MAX_PIXELS**0.5) + 1
    file = dicom_file("bomb.dcm", VALUES, Rows=side, Columns=side)
    with pytest.raises(DataError, match=rf"bomb\.dcm: its header promises {side} x {side} px"):
        read_image(file)


def test_cut_pixels_are_named():
    with pytest.raises(DataError, match=r"MR_truncated\.dcm cannot be read as an image"):
        read_image(pydicom_file("MR_truncated.dcm"))


def test_burned_in_text_is_refused_unless_allowed():
    file = dicom_file("a.dcm", VALUES, BurnedInAnnotation="YES")
    with pytest.raises(DataError, match=r"a\.dcm: BurnedInAnnotation is YES(.|\n)*data\.allow_burned_in=true"):
        read_image(file)
    assert read_image(file, allow_burned_in=True).size == (5, 1)
    assert read_image(dicom_file("b.dcm", VALUES, BurnedInAnnotation="NO")).size == (5, 1)


SQUARES = np.arange(6, dtype=np.uint16).reshape(2, 3) * 40
"""0 40 80 / 120 160 200; stored with a window that shows it as it is."""

AS_IS = {"WindowCenter": 128, "WindowWidth": 256, "BitsStored": 8, "HighBit": 7}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, [[0, 40, 80], [120, 160, 200]]),
        ({"ImageOrientationPatient": [1, 0, 0, 0, -1, 0]}, [[120, 160, 200], [0, 40, 80]]),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, -0.98, 0.17]}, [[200, 160, 120], [80, 40, 0]]),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, [[0, 120], [40, 160], [80, 200]]),  # axial, transposed
        ({"ImageOrientationPatient": [0, 0, -1, 0, 1, 0]}, [[0, 120], [40, 160], [80, 200]]),  # sagittal, transposed
        (
            {"ImageOrientationPatient": [0, 0, 1, 1, 0, 0]},
            [[80, 200], [40, 160], [0, 120]],
        ),  # coronal, head on the right
        ({"ImageOrientationPatient": [0.7, 0.7, 0, -0.7, 0.7, 0]}, [[0, 40, 80], [120, 160, 200]]),
        ({"Modality": "CR", "PatientOrientation": ["L", "F"]}, [[0, 40, 80], [120, 160, 200]]),
        ({"Modality": "DX", "PatientOrientation": ["R", "F"]}, [[80, 40, 0], [200, 160, 120]]),
        ({"Modality": "DX", "PatientOrientation": ["FR", "L"]}, [[0, 120], [40, 160], [80, 200]]),
        ({"Modality": "MG", "PatientOrientation": ["R", "F"]}, [[0, 40, 80], [120, 160, 200]]),
        ({"Modality": "CR", "PatientOrientation": ""}, [[0, 40, 80], [120, 160, 200]]),
    ],
)
def test_pictures_are_turned_as_the_header_says(fields, expected):
    file = dicom_file("a.dcm", SQUARES, **AS_IS, **fields)
    assert np.abs(np.array(gray(file)) - expected).max() <= 1


def test_each_frame_has_its_own_orientation():
    file = dicom_file("a.dcm", np.concatenate([SQUARES, SQUARES]), **AS_IS)
    header = pydicom.dcmread(BytesIO(file.content))
    header.Rows, header.NumberOfFrames = 2, 2

    def plane(cosines):
        item, group = pydicom.Dataset(), pydicom.Dataset()
        item.ImageOrientationPatient = cosines
        group.PlaneOrientationSequence = [item]
        return group

    header.SharedFunctionalGroupsSequence = [plane([1, 0, 0, 0, 1, 0])]
    header.PerFrameFunctionalGroupsSequence = [pydicom.Dataset(), plane([0, 1, 0, 1, 0, 0])]
    file = saved("a.dcm", header)
    for frame, size in ((0, (3, 2)), (1, (2, 3))):
        assert read_image(file, ImageView(frame=frame)).size == size
