"""Pictures out of files: windows, color spaces, depth, orientation, and files that are none."""

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from megatron_medx.data.demo.pictures import package_folder
from megatron_medx.data.images import image_size, read_image
from megatron_medx.errors import DataError


def write_dicom(path, values, **fields):
    """A DICOM file of given stored values (H, W) uint16 or (H, W, 3) uint8."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.Rows, header.Columns = values.shape[:2]
    header.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        header.PlanarConfiguration = 0
    header.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8 * values.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = 0
    header.PixelData = values.tobytes()
    for name, value in fields.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)
    return path


def gray(path):
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == image_size(path)
    return np.asarray(image)[:, :, 0].tolist()


VALUES = np.array([[0, 1000, 1100, 1200, 4000]], dtype=np.uint16)


def test_window_is_applied_in_physical_units(tmp_path):
    # stored 1000..1200 are -24..176 HU; the window of center 76, width 200 shows -24 as black and 176 as white
    fields = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 76, "WindowWidth": 200}
    black, low, middle, high, white = gray(write_dicom(tmp_path / "a.dcm", VALUES, **fields))[0]
    assert (black, white) == (0, 255)
    assert low <= 1 and abs(middle - 128) <= 1 and high >= 254


def test_first_of_several_windows_is_used(tmp_path):
    several = write_dicom(tmp_path / "a", VALUES, WindowCenter=[1100, 9], WindowWidth=[200, 9])
    one = write_dicom(tmp_path / "b", VALUES, WindowCenter=1100, WindowWidth=200)
    assert gray(several) == gray(one)


def test_monochrome1_is_inverted_after_the_window(tmp_path):
    window = {"WindowCenter": 1100, "WindowWidth": 200}
    plain = np.array(gray(write_dicom(tmp_path / "a", VALUES, **window)))
    inverted = np.array(gray(write_dicom(tmp_path / "b", VALUES, **window, PhotometricInterpretation="MONOCHROME1")))
    assert np.abs(plain + inverted - 255).max() <= 1


def test_percentiles_where_no_window_is_stored(tmp_path):
    ramp = np.arange(1000, dtype=np.uint16).reshape(20, 50) + 300
    shown = np.array(gray(write_dicom(tmp_path / "a", ramp))).ravel()
    assert shown[0] == 0 and shown[-1] == 255 and abs(shown[500] - 128) <= 1
    # a window of width 0 is none
    assert gray(write_dicom(tmp_path / "b", ramp, WindowCenter=3, WindowWidth=0)) == shown.reshape(20, 50).tolist()


def test_padding_does_not_widen_the_percentile_window(tmp_path):
    ramp = np.arange(1000, dtype=np.uint16).reshape(20, 50) + 300
    ramp[:5] = 65535
    shown = np.array(gray(write_dicom(tmp_path / "a", ramp, PixelPaddingValue=65535)))
    assert shown[5, 0] <= 2 and shown[-1, -1] == 255


def test_flat_image_is_black(tmp_path):
    assert gray(write_dicom(tmp_path / "a", np.full((2, 3), 7, dtype=np.uint16))) == [[0, 0, 0]] * 2


def test_dicom_color(tmp_path):
    color = np.zeros((2, 2, 3), dtype=np.uint8)
    color[0, 0] = (200, 100, 50)
    assert np.array_equal(np.asarray(read_image(write_dicom(tmp_path / "a", color))), color)


@pytest.mark.parametrize(
    ("file", "colors"),
    # top bar of pydicom's test pattern is red in each of its color spaces
    [("SC_rgb_dcmtk_+eb+cy+n1.dcm", (255, 0, 0)), ("SC_rgb_rle_16bit.dcm", (255, 0, 0))],
)
def test_color_spaces_become_rgb(file, colors):
    pixel = np.asarray(read_image(package_folder("pydicom") / file))[5, 50]
    assert np.abs(pixel.astype(int) - colors).max() <= 3


def test_palette_and_lookup_tables():
    folder = package_folder("pydicom-data")
    palette = read_image(folder / "OBXXXX1A_rle.dcm")
    assert palette.size == (800, 600) and np.asarray(palette).std() > 10
    # a ramp through a VOI LUT of slope +1 is the ramp
    shown = np.asarray(read_image(folder / "vlut_04.dcm"))[:, :, 0]
    assert np.array_equal(shown, pydicom.dcmread(folder / "vlut_04.dcm").pixel_array)


def test_first_frame_of_several():
    path = package_folder("pydicom") / "examples_ybr_color.dcm"
    assert read_image(path).size == image_size(path) == (320, 240)


def test_deep_png_keeps_its_range(tmp_path):
    ramp = (np.arange(1000, dtype=np.uint16).reshape(20, 50) * 40) + 5000
    Image.fromarray(ramp).save(tmp_path / "a.png")
    shown = np.array(gray(tmp_path / "a.png"))
    assert shown.min() == 0 and shown.max() == 255 and len(np.unique(shown)) == 256


def test_orientation_turns_picture_and_size(tmp_path):
    image = Image.new("RGB", (7, 3), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == image_size(tmp_path / "a.jpg") == (3, 7)


def test_content_decides_not_the_suffix(tmp_path):
    path = write_dicom(tmp_path / "a.png", VALUES)
    assert read_image(path).size == (5, 1)


def test_a_missing_file_is_named(tmp_path):
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"no image file .*gone\.png"):
            read(tmp_path / "gone.png")


def test_a_broken_file_is_named(tmp_path):
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("not an image")
    Image.effect_noise((64, 64), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:900])
    with pytest.raises(DataError, match=r"text\.png cannot be read as an image \(UnidentifiedImageError"):
        image_size(text)
    with pytest.raises(DataError, match=r"cut\.png cannot be read as an image"):
        read_image(cut)
    with pytest.raises(DataError, match=r"MR_truncated\.dcm cannot be read as an image"):
        read_image(package_folder("pydicom") / "MR_truncated.dcm")


def test_dicom_without_pixels_is_named():
    for read in (read_image, image_size):
        with pytest.raises(DataError, match="a DICOM file of modality RTPLAN without pixel data"):
            read(package_folder("pydicom") / "rtplan.dcm")
