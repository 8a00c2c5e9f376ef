"""Every transfer syntax that is read, each by a file of pydicom's whose pixels are known from an uncompressed twin."""

import numpy as np
import pydicom
import pytest
from dicom_files import pydicom_file
from pydicom import uid
from pydicom.pixels import get_decoder

from megatron_medx.data.images.files import read_image

READ = {
    uid.ExplicitVRLittleEndian: ("CT_small.dcm", None, 0),
    uid.ImplicitVRLittleEndian: ("MR_small_implicit.dcm", "MR_small.dcm", 0),
    uid.ExplicitVRBigEndian: ("MR_small_expb.dcm", "MR_small.dcm", 0),
    uid.DeflatedExplicitVRLittleEndian: ("image_dfl.dcm", None, 0),
    uid.RLELossless: ("MR_small_RLE.dcm", "MR_small.dcm", 0),
    uid.JPEGBaseline8Bit: ("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb.dcm", 1),
    uid.JPEGExtended12Bit: ("JPGExtended.dcm", None, 0),
    uid.JPEGLosslessSV1: ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb.dcm", 0),
    uid.JPEGLSLossless: ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
    uid.JPEGLSNearLossless: ("SC_rgb_jls_lossy_line.dcm", "SC_rgb.dcm", 2),
    uid.JPEG2000Lossless: ("693_J2KR.dcm", "693_UNCR.dcm", 0),
    uid.JPEG2000: ("693_J2KI.dcm", "693_UNCI.dcm", 0),
}
"""Syntax -> file, the same picture uncompressed where there is one, largest difference of 255 as measured."""

DECODED_WITHOUT_A_FILE = (uid.JPEGLossless, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
"""Syntaxes for which a decoder is installed, but neither pydicom nor its data hold a file."""


@pytest.mark.parametrize("syntax", READ, ids=lambda syntax: syntax.name)
def test_a_syntax_is_decoded(syntax):
    name, twin, difference = READ[syntax]
    file = pydicom_file(name)
    assert pydicom.dcmread(pydicom_file(name).name, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    image = read_image(file)
    shown = np.asarray(image).astype(int)
    assert shown.std() > 10
    if twin:
        assert np.abs(shown - np.asarray(read_image(pydicom_file(twin)))).max() <= difference


def test_the_tables_hold_every_syntax_that_has_a_decoder():
    def is_decoded(syntax):
        try:
            return get_decoder(syntax).is_available
        except NotImplementedError:
            return False

    assert {syntax for syntax in uid.AllTransferSyntaxes if is_decoded(syntax)} == {*READ, *DECODED_WITHOUT_A_FILE}
