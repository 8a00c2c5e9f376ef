"""Frames of DICOM files as files of their own."""

from io import BytesIO
from itertools import islice

import numpy as np
import pydicom
import pytest
from dicom_files import dicom_file, pydicom_file, saved

from megatron_medx.data.images.files import read_image
from megatron_medx.data.images.frames import split_frames
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.view import ImageView


@pytest.mark.parametrize(
    "name",
    [
        "examples_ybr_color.dcm",  # JPEG
        "emri_small_RLE.dcm",
        "emri_small_jpeg_2k_lossless.dcm",
        "emri_small_big_endian.dcm",
        "SC_rgb_16bit_2frame.dcm",
        "SC_rgb_expb_32bit_2frame.dcm",
        "OBXXXX1A_rle_2frame.dcm",  # palette
        "eCT_Supplemental.dcm",  # functional groups
        "rtdose.dcm",  # implicit VR
        "liver.dcm",  # one bit a pixel
    ],
)
def test_each_frame_is_seen_as_in_the_whole(name):
    file = pydicom_file(name)
    num_frames = int(pydicom.dcmread(BytesIO(file.content), stop_before_pixels=True).NumberOfFrames)
    contents = list(split_frames(file.content))
    assert len(contents) == num_frames > 1
    assert sum(map(len, contents)) < len(file.content) + num_frames * 50_000
    for frame, content in islice(enumerate(contents), 4):
        header = pydicom.dcmread(BytesIO(content))
        assert header.NumberOfFrames == 1 and len(header.get("PerFrameFunctionalGroupsSequence", [])) <= 1
        whole = np.asarray(read_image(file, ImageView(frame=frame)))
        assert np.array_equal(np.asarray(read_image(ImageFile(name, content))), whole)


def test_a_file_of_one_frame_stays():
    file = dicom_file("a.dcm", np.arange(6, dtype=np.uint16).reshape(2, 3))
    (content,) = split_frames(file.content)
    assert np.array_equal(np.asarray(read_image(ImageFile("b", content))), np.asarray(read_image(file)))


def test_frames_within_a_byte_are_refused():
    header = pydicom.dcmread(BytesIO(dicom_file("a", np.zeros((2, 3), np.uint8)).content))
    header.BitsAllocated = header.BitsStored = 1
    header.HighBit = 0
    header.NumberOfFrames, header.PixelData = 2, b"\0\0"
    with pytest.raises(ValueError, match="2 x 3 pixels of one bit"):
        list(split_frames(saved("a", header).content))
