"""DICOM files that tests make, and those that come with pydicom."""

from io import BytesIO

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from megatron_medx.data.demo.pictures import package_folder
from megatron_medx.data.images.image_file import ImageFile


def dicom_file(name, values, **fields):
    """A DICOM file of given stored values (H, W) uint16 or (H, W, 3) uint8."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    header = FileDataset(name, {}, file_meta=meta, preamble=b"\0" * 128)
    header.Rows, header.Columns = values.shape[:2]
    header.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        header.PlanarConfiguration = 0
    header.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8 * values.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = 0
    header.PixelData = values.tobytes()
    for field, value in fields.items():
        setattr(header, field, value)
    return saved(name, header)


def saved(name, header):
    content = BytesIO()
    header.save_as(content, enforce_file_format=True)
    return ImageFile(name, content.getvalue())


def pydicom_file(name):
    """A file of pydicom's own test data."""
    return ImageFile.of(next(folder / name for folder in _folders() if (folder / name).is_file()))


def pydicom_files():
    """All of them."""
    for folder in _folders():
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield ImageFile.of(path)


def _folders():
    return package_folder("pydicom"), package_folder("pydicom-data")
