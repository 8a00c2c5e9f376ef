"""Image files without what identifies a person, and the little text that their headers may give a model.

Headers are cut down to an allow-list; nothing is recognized, so nothing can be overlooked in a header. Pixels are not
looked at: what is burned in stays (`BurnedInAnnotation` too), as do overlays in unused bits of PixelData, comments
within compressed frames, and a face that a head's volume shows.
"""

import gzip
import hashlib
from io import BytesIO

import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, SecondaryCaptureImageStorage

from megatron_medx.data.images.dicom import GROUPS, PLANE_FIELDS, PREAMBLE_BYTES, directions, lay_frame
from megatron_medx.data.images.frames import PIXEL_FIELDS
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.kept_attributes import (
    BODY_PARTS,
    KEPT,
    LATERALITIES,
    MODALITIES,
    SEQUENCES,
    UNITS,
    VIEWS,
    WORDS,
)
from megatron_medx.data.images.nifti import GZIP, TEXT_FIELDS, nifti_content, nifti_parts
from megatron_medx.data.images.orientation import plane_of

NO_CONTRAST = ("", "NO", "NONE", "N")
"""What is written into ContrastBolusAgent where none was given."""

UUID_UID = "2.25."
"""Root of UIDs that are 128-bit numbers (PS3.5 B.2)."""

KEY_BYTES = 16
"""Of a patient key: 1e9 patients collide with a chance of 1e-21."""


def strip_dicom(content: bytes) -> tuple[bytes, list[str]]:
    """The same file with the attributes of `kept_attributes` alone, and the keywords of what was dropped.

    Pixel data stay as they are, compressed or not, and `read_image` shows the same picture. SOPInstanceUID becomes a
    hash of the pixel data, other UIDs of instances go. A second call changes nothing.

    Returns:
        The file; sorted keywords of attributes that held a value and were dropped or replaced, at any depth, never
        their values. Private attributes are one entry, `private`.

    Raises:
        Exception: whatever pydicom says of a broken file; call it within `files.errors_named`.
    """
    header = pydicom.dcmread(BytesIO(content))
    dropped: set[str] = set()
    _strip(header, dropped)
    stored_class = str(header.get("SOPClassUID") or SecondaryCaptureImageStorage)
    header.SOPClassUID = SecondaryCaptureImageStorage if UID(stored_class).is_private else stored_class
    pixels = hashlib.blake2b(digest_size=KEY_BYTES)
    for field in PIXEL_FIELDS:
        if field in header:
            pixels.update(header.get_item(field).value)
    header.SOPInstanceUID = f"{UUID_UID}{int.from_bytes(pixels.digest())}"
    return _saved(header), sorted(dropped)


def strip_nifti(content: bytes) -> tuple[bytes, list[str]]:
    """The same volume without the texts and extensions of its header, and the names of those that held something.

    The name of a file within a compressed one goes too.

    Raises:
        DataError: voxels are missing.
        Exception: whatever nibabel says of a broken header; call it within `files.errors_named`.
    """
    header, data = nifti_parts(ImageFile("a NIfTI file", content))
    dropped = [field for field in TEXT_FIELDS if field in header and bytes(header[field]).strip(b"\0 ")]
    dropped += ["extensions"] * bool(header.extensions)
    stripped = nifti_content(header, data[header.get_data_offset() :])
    return gzip.compress(stripped, mtime=0) if content[:2] == GZIP else stripped, sorted(dropped)


def safe_description(content: bytes) -> str:
    """What a DICOM picture is of, in words of a closed list: `CT, CHEST, axial, with contrast`; may be empty.

    Raises:
        Exception: whatever pydicom says of a broken file.
    """
    fields = ["BodyPartExamined", "ViewPosition", "Laterality", "ImageLaterality", "ContrastBolusAgent"]
    header = pydicom.dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=fields + PLANE_FIELDS + GROUPS)
    lay_frame(header, 0)
    known = directions(header)
    words = [
        _word(header, "Modality", MODALITIES - {"OT"}),
        _word(header, "BodyPartExamined", BODY_PARTS),
        LATERALITIES.get(_word(header, "ImageLaterality", LATERALITIES) or _word(header, "Laterality", LATERALITIES)),
        _word(header, "ViewPosition", VIEWS) or (plane_of(*known) if known else ""),
        "with contrast" if _has_contrast(header) else "",
    ]
    return ", ".join(word for word in words if word)


def patient_key(content: bytes, key: bytes) -> str:
    """A hash that is the same for all DICOM files of a patient, and tells nothing to who does not know `key`.

    Of PatientID and IssuerOfPatientID, or of StudyInstanceUID where there is no PatientID; empty where there is
    neither. Take the key before `strip_dicom`.

    Args:
        content: a DICOM file.
        key: 1 to 64 secret bytes, the same for all of a corpus; without it IDs of few digits could be tried out.

    Raises:
        ValueError: an empty or too long key.
        Exception: whatever pydicom says of a broken file.
    """
    if not key:
        raise ValueError("an empty key")
    fields = ["PatientID", "IssuerOfPatientID", "StudyInstanceUID"]
    header = pydicom.dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=fields)
    patient, issuer, study = (str(header.get(field) or "").strip() for field in fields)
    if not patient and not study:
        return ""
    parts = ("patient", issuer, patient) if patient else ("study", study)
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=KEY_BYTES, key=key).hexdigest()


def _strip(header: pydicom.Dataset, dropped: set[str]) -> None:
    """Take out of a header, and of the sequences that stay, what is not kept; the rest is not even decoded."""
    for tag in list(header.keys()):
        keyword = pydicom.datadict.keyword_for_tag(tag)
        if keyword in SEQUENCES and header[tag].VR == "SQ":
            for item in header[tag].value:
                _strip(item, dropped)
        elif keyword not in KEPT or keyword in SEQUENCES:
            if header.get_item(tag).value:
                dropped.add("private" if tag.is_private else keyword or str(tag))
            del header[tag]
        elif keyword in WORDS:
            _keep_words(header, keyword, dropped)
        elif header.get_item(tag).VR is None and not header.original_encoding[0]:
            header[tag]  # no VR in a file of explicit ones: decoded, which takes it from the dictionary
    for field in ("RescaleType", "ModalityLUTType"):
        if field in header and header[field].value and _text(header, field) not in UNITS:
            setattr(header, field, "US")
            dropped.add(field)
    if "ContrastBolusAgent" in header and _text(header, "ContrastBolusAgent") != "YES":
        dropped.update(["ContrastBolusAgent"] if _text(header, "ContrastBolusAgent") else [])
        header.ContrastBolusAgent = "YES" if _has_contrast(header) else ""


def _keep_words(header: pydicom.Dataset, keyword: str, dropped: set[str]) -> None:
    value = header[keyword].value
    words = [str(word) for word in (value if isinstance(value, pydicom.multival.MultiValue) else [value or ""])]
    kept = [word for word in words if not word or word.strip().upper() in WORDS[keyword]]
    if kept != words:
        dropped.add(keyword)
        setattr(header, keyword, kept)


def _saved(header: FileDataset) -> bytes:
    """The file with a new preamble and meta information, which may hold names as well."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta, header.preamble = meta, b"\0" * PREAMBLE_BYTES
    file = BytesIO()
    header.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _has_contrast(header: pydicom.Dataset) -> bool:
    return _text(header, "ContrastBolusAgent").upper() not in NO_CONTRAST


def _word(header: pydicom.Dataset, keyword: str, known: frozenset[str] | dict[str, str]) -> str:
    word = _text(header, keyword).upper()
    return word if word in known else ""


def _text(header: pydicom.Dataset, keyword: str) -> str:
    return str(header.get(keyword) or "").strip()
