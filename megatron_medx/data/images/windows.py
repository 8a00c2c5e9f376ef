"""Physical values, and the windows that map them to 8 bits."""

from dataclasses import dataclass

import numpy as np

from megatron_medx.errors import DataError

WINDOWS_HU = {
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "soft_tissue": (50, 400),
    "liver": (30, 150),
    "bone": (400, 1800),
    "brain": (40, 80),
    "subdural": (75, 215),
    "stroke": (40, 40),
}
"""Name -> center and width, both in HU. Black is center - width / 2 and below, white center + width / 2 and above.

Source: the ranges in common use at reading stations, as Radiopaedia lists them under "Windowing (CT)" (stated from
memory); of a range the middle is taken. Soft tissue and liver are the ones for the abdomen. Habits differ between
departments by some tens of HU.
"""

PERCENTILES = (0.5, 99.5)
"""Window where none is stored: the whole range but for the few values of burned-in marks and dead pixels."""


@dataclass(frozen=True, slots=True)
class PhysicalImage:
    """Measured values of one frame, before any window."""

    values_HW: np.ndarray
    """(H, W) float64, in `unit`."""
    unit: str
    """`HU`, another unit by the file's own name for it, or empty where none is known."""
    unit_source: str
    """What says so: the header's field; empty where no unit is known."""


def named_windows(image: PhysicalImage, names: tuple[str, ...], file: str) -> np.ndarray:
    """(H, W, 3) uint8, bright where HU are high: one window in all channels, or one each in red, green and blue.

    Example: lung is -1350 to 150 HU, so -1350 -> 0, -600 -> 128, 150 -> 255.

    Args:
        image: values in HU.
        names: one or three keys of WINDOWS_HU.
        file: what the error calls the image.

    Raises:
        DataError: the values are not in HU.
    """
    check_hu(image.unit, image.unit_source, names, file)
    channels = []
    for name in names if len(names) == 3 else names * 3:
        center, width = WINDOWS_HU[name]
        channels.append(to_8bit((image.values_HW - center) / width + 0.5))
    return np.stack(channels, axis=-1)


def check_hu(unit: str, unit_source: str, names: tuple[str, ...], file: str) -> None:
    """Raise DataError where `names` asks for windows in HU of values in another unit."""
    if not names or unit == "HU":
        return
    states = f"{unit_source} says {unit}" if unit else "it states none"
    raise DataError(
        f"{file}: window {', '.join(names)} asked of an image that is not in HU ({states})",
        "a CT with RescaleSlope and RescaleIntercept, its RescaleType HU or absent (DICOM PS3.3 C.8.2.1), no scout",
        "take `window` out of the sample's image part, so that the file's own window is used",
    )


def percentile_window(values: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Map values of any range to 0..1 (float64) by the percentiles of `reference`; a flat image becomes 0.

    Args:
        values: (H, W) numbers.
        reference: (n,) or (H, W) those of them that count; all if not given.
    """
    reference = values if reference is None else reference
    low, high = np.percentile(reference, PERCENTILES)
    if high <= low:
        low, high = float(reference.min()), float(reference.max())
    if high <= low:
        return np.zeros(values.shape)
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)


def to_8bit(shown: np.ndarray) -> np.ndarray:
    """Display values, 0 black and 1 white, as uint8; what lies outside is cut."""
    return np.round(np.clip(shown, 0, 1) * 255).astype(np.uint8)
