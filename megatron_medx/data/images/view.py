"""What a sample asks of an image file: a frame and windows; and what a file must offer for it."""

from dataclasses import dataclass
from typing import Any, Self

from megatron_medx.data.images.windows import WINDOWS_HU
from megatron_medx.errors import DataError

VIEW_KEYS = ("window", "frame")
"""Optional keys of a sample's image part that `ImageView.of` reads."""

MAX_PIXELS = 2**28 // 3
"""Most pixels of one frame: 256 MiB as 8-bit RGB, 89 million, which is where Pillow begins to warn too.

The largest single medical pictures (mammograms, scanned film) have 50 million; a whole slide is not one picture.
"""


@dataclass(frozen=True, slots=True)
class ImageView:
    """One frame of a file, through named windows.

    Raises:
        ValueError(found, needed): a name that is no window, a number of names other than 0, 1 or 3, a negative frame.
    """

    windows: tuple[str, ...] = ()
    """Keys of WINDOWS_HU: none (what the file itself says), one, or three for red, green and blue."""
    frame: int = 0
    """Frame of a file with several, from 0."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.windows if not isinstance(name, str) or name not in WINDOWS_HU]
        if unknown:
            raise ValueError(f"window {unknown[0]!r}", f"one of {', '.join(WINDOWS_HU)}")
        if len(self.windows) not in (0, 1, 3):
            raise ValueError(f"{len(self.windows)} windows", "one, or three for red, green and blue")
        if not isinstance(self.frame, int) or isinstance(self.frame, bool) or self.frame < 0:
            raise ValueError(f"frame {self.frame!r}", "the number of a frame, from 0")

    @classmethod
    def of(cls, part: dict[str, Any]) -> Self:
        """The view an image part of samples.jsonl asks for.

        Example: {"type": "image", "image": "ct.dcm", "window": ["lung", "bone", "brain"], "frame": 2} ->
        ImageView(("lung", "bone", "brain"), 2); "window": "lung" -> ImageView(("lung",), 0).

        Raises:
            ValueError(found, needed): as the class; a window that is neither a text nor a list with texts.
        """
        window = part.get("window", [])
        if "window" in part and (not isinstance(window, str | list) or not window):
            raise ValueError(f"window {window!r}", "the name of a window, or a list of three")
        return cls((window,) if isinstance(window, str) else tuple(window), part.get("frame", 0))


AS_STORED = ImageView()
"""The first frame, by what the file says of itself."""


def check_frame(name: str, frame: int, num_frames: int) -> None:
    """Raise DataError where the file `name` has no such frame."""
    if frame >= num_frames:
        raise DataError(
            f"{name} has {num_frames} frame{'s' * (num_frames > 1)}, asked is frame {frame}",
            f"a frame from 0 to {num_frames - 1}" if num_frames > 1 else "frame 0",
            "mend the frame of the sample's image part",
        )


def check_pixels(name: str, width: int, height: int) -> None:
    """Raise DataError where a header promises more than MAX_PIXELS, before memory is taken for them."""
    if width * height > MAX_PIXELS:
        raise too_many_pixels(name, f"{width} x {height} px")


def too_many_pixels(name: str, promised: str) -> DataError:
    """The error for a header that promises too much."""
    return DataError(
        f"{name}: its header promises {promised}",
        f"at most {MAX_PIXELS:,} pixels in one picture",
        "cut it into tiles or reduce it, or take its sample out: a small file with such a header is broken or hostile",
    )
