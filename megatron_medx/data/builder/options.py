"""What the user of a build chooses, and which split a sample falls into."""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

from megatron_medx.errors import DataError

MAX_SLICES = 64
"""Images that a volume or slide becomes at most, unless told otherwise."""

SHARD_SIZE_BYTES = 500_000_000
"""Size at which a shard is closed: large enough for a parallel file system, small enough to copy again."""

PUBLIC_KEY = b"megatron_medx: pseudonyms without a secret"

MIN_KEY_BYTES = 16
"""Of a key for pseudonyms: 128 bits cannot be tried out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """How a source becomes a data folder. The first group decides what is written, the second only how."""

    processor: Path | None = None
    """Hugging Face directory whose tokenizer counts the tokens; None means `processor` beside the source's samples."""
    splits: dict[str, float] = field(default_factory=dict)
    """Name -> share of the patients; each becomes a data folder of its own below OUT. Empty: OUT is the data folder."""
    max_slices: int = MAX_SLICES
    """Most images of a volume or slide, evenly chosen."""
    shard_size_bytes: int = SHARD_SIZE_BYTES
    """A shard is closed before it would grow over this; one sample may."""
    allow_burned_in: bool = False
    """Whether images may have text burned in by their own header's word."""
    patient_key_file: Path | None = None
    """File whose content keys the pseudonyms made of patients' ids in DICOM headers.

    The same file gives the same pseudonyms in every build. Without one they are made with a key that everybody can
    read: then who knows a patient's id can find the patient.
    """

    workers: int = 1
    """Processes; 1 works in this one."""
    overwrite: bool = False
    """Whether a folder that an earlier build finished may be replaced."""
    report_picture: bool = True
    """Whether report.png is drawn."""
    slurm: dict[str, str] = field(default_factory=dict)
    """Arguments of the Slurm jobs that do the work; empty: the work is done here."""

    def __post_init__(self) -> None:
        check_splits(self.splits)
        for name in ("max_slices", "shard_size_bytes", "workers"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} = {getattr(self, name)}", "a number from 1", f"set {name} to such a number")

    @property
    def patient_key(self) -> bytes:
        """The key of pseudonyms.

        Raises:
            DataError: its file cannot be read or is shorter than MIN_KEY_BYTES.
        """
        if self.patient_key_file is None:
            return PUBLIC_KEY
        path = Path(self.patient_key_file)
        key = path.read_bytes() if path.is_file() else b""
        if len(key) < MIN_KEY_BYTES:
            raise DataError(
                f"{path}, {len(key)} bytes" if path.is_file() else f"no file {path}",
                f"a key of at least {MIN_KEY_BYTES} random bytes",
                f"head -c 32 /dev/urandom > {path}, and keep it where the data may not go",
            )
        return hashlib.sha256(key).digest()

    @property
    def split_names(self) -> tuple[str, ...]:
        """Folders below OUT, one for each split; the empty name is OUT itself."""
        return tuple(self.splits) or ("",)

    def split_of(self, patient: str) -> str:
        """The split of a patient: a pure function of the key, so neither order nor other patients play a part.

        Args:
            patient: key of the patient; of a sample without one its id.

        Example: with train=0.98, val=0.02 a key whose hash, as a fraction, is 0.983 falls into val.
        """
        if not self.splits:
            return ""
        place = int.from_bytes(hashlib.sha256(patient.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
        reached = 0.0
        for name, share in self.splits.items():
            reached += share
            if place < reached:
                return name
        return name  # the shares' sum may fall short of 1 by a rounding


def check_splits(splits: dict[str, float]) -> None:
    """Refuse splits that cannot be folders or do not sum to 1.

    Raises:
        DataError: with what they sum to.
    """
    needed, do = "names as of folders with shares above 0 that sum to 1", "write for instance train=0.98,val=0.02"
    bad = [name for name in splits if not name.replace("-", "").replace("_", "").isalnum()]
    if bad:
        raise DataError(f"split name {bad[0]!r}", needed, do)
    total = math.fsum(splits.values())
    if splits and (min(splits.values()) <= 0 or abs(total - 1) > 1e-9):
        shares = ", ".join(f"{name}={share:g}" for name, share in splits.items())
        raise DataError(f"splits {shares}, which sum to {total:g}", needed, do)
