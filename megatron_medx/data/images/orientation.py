"""How a picture must be turned so that it is seen as radiologists are used to.

In: where its rows and columns run in the patient, from a DICOM header or the affine of a NIfTI file. Out: a flip or a
quarter turn of PIL. Directions are vectors of patient coordinates as DICOM has them (PS3.3 C.7.6.2.1.1): x grows to
the patient's left, y to the back, z to the head.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

PLANES = {"sagittal": ("P", "F"), "coronal": ("L", "F"), "axial": ("L", "P")}
"""Plane -> what lies to the right and at the bottom of the picture; in the order of the axes that they lie across.

So the patient's right is on the left, as if one looked from the feet or from the front; a sagittal picture looks left.
"""

DIRECTIONS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
"""Letters of PatientOrientation (PS3.3 C.7.6.1.1.1) as vectors."""

MIN_COSINE = np.cos(np.radians(30))
"""A plane whose rows and columns are further than this from the patient's axes belongs to none and stays as stored:
a heart's short axis, say, has conventions of its own. Angled brains and spines stay below 30 degrees."""

TURNS = {
    (False, False, False): None,
    (False, True, False): Image.Transpose.FLIP_LEFT_RIGHT,
    (False, False, True): Image.Transpose.FLIP_TOP_BOTTOM,
    (False, True, True): Image.Transpose.ROTATE_180,
    (True, False, False): Image.Transpose.TRANSPOSE,
    (True, True, False): Image.Transpose.ROTATE_270,
    (True, False, True): Image.Transpose.ROTATE_90,
    (True, True, True): Image.Transpose.TRANSVERSE,
}
"""(rows become columns, then left and right are swapped, then top and bottom) -> PIL's name for it."""


def plane_of(to_right: Sequence[float], to_bottom: Sequence[float]) -> str:
    """`axial`, `coronal` or `sagittal`; empty where the picture lies too far from all three.

    Args:
        to_right: (3,) direction in which the column index of the stored picture grows.
        to_bottom: (3,) direction in which its row index grows.
    """
    axes = [_axis(to_right), _axis(to_bottom)]
    if None in axes or axes[0] == axes[1]:
        return ""
    return list(PLANES)[3 - sum(axes)]


def turn_of(to_right: Sequence[float], to_bottom: Sequence[float]) -> Image.Transpose | None:
    """The turn after which a picture is seen by the convention; None where it needs none or lies in no plane.

    Example: rows run to the patient's left and columns to the front, (1, 0, 0) and (0, -1, 0): FLIP_TOP_BOTTOM.

    Args:
        to_right: as `plane_of`.
        to_bottom: as `plane_of`.
    """
    plane = plane_of(to_right, to_bottom)
    if not plane:
        return None
    wanted = [np.array(DIRECTIONS[letter]) for letter in PLANES[plane]]
    stored = [np.asarray(to_right), np.asarray(to_bottom)]
    transposed = _axis(stored[0]) != _axis(wanted[0])
    if transposed:
        stored.reverse()
    return TURNS[transposed, bool(stored[0] @ wanted[0] < 0), bool(stored[1] @ wanted[1] < 0)]


def turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """`image` after the turn; itself where there is none."""
    return image if turn is None else image.transpose(turn)


def normal_of(to_right: Sequence[float], to_bottom: Sequence[float]) -> np.ndarray:
    """(3,) float64 unit vector across the picture, of the two the one that points to the head, the back or the left.

    Which of the three counts is decided by its largest component, so that positions along it grow from foot to head
    in axial slices, from front to back in coronal ones and from right to left in sagittal ones.
    """
    normal = np.cross(np.asarray(to_right, dtype=np.float64), np.asarray(to_bottom, dtype=np.float64))
    normal /= np.linalg.norm(normal)
    return normal * np.sign(normal[np.abs(normal).argmax()])


def _axis(direction: Sequence[float]) -> int | None:
    """Patient axis along which a direction runs; None where none is within 30 degrees."""
    direction = np.asarray(direction, dtype=np.float64)
    cosines = np.abs(direction) / max(float(np.linalg.norm(direction)), 1e-12)
    return int(cosines.argmax()) if cosines.max() >= MIN_COSINE else None
