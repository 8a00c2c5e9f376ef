"""NIfTI files that tests make."""

import gzip
from io import BytesIO

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from megatron_medx.data.images.image_file import ImageFile


def nifti_file(name, stored, affine, kind=nibabel.Nifti1Image, **fields):
    """A file of `stored` voxels; `fields` of its header are set when all else is written, so that none is mended."""
    content = kind(stored, affine).to_bytes()
    header = kind.header_class.from_fileobj(BytesIO(content))
    for field, value in fields.items():
        header[field] = value
    content = header.binaryblock + content[len(header.binaryblock) :]
    return ImageFile(name, gzip.compress(content) if name.endswith(".gz") else content)


SHAPE_LPS = (5, 4, 3)
"""Voxels to the patient's left, back and head."""

VALUES_LPS = np.arange(60, dtype=np.int16).reshape(SHAPE_LPS) ** 2 - 1000

AFFINE_LPS = np.diag([-2.0, -2.5, 3.0, 1.0])
"""Of these values, in NIfTI's coordinates (right, front, head); the corner lies at 7, 11, -20.04 mm."""
AFFINE_LPS[:3, 3] = (7, 11, -20.04)


def stored_as(axcodes):
    """The volume above with its axes stored in another order and direction."""
    change = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(axcodes))
    values = apply_orientation(VALUES_LPS, change)
    return np.ascontiguousarray(values), AFFINE_LPS @ inv_ornt_aff(change, SHAPE_LPS)
