"""The header of a safetensors file: names, shapes, dtypes and places of its tensors, read without torch.

A plan of a conversion needs no more than this, and torch alone takes 550 MB. What reads values,
`safetensors_stream.py`, stands on it.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from megatron_medx.errors import CheckpointError

LENGTH_BYTES = 8
"""A file starts with the length of its header; data offsets count from the header's end."""

ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""Dtypes that weights are stored in, under the file format's names, and the bytes of one value."""


def read_header(path: Path) -> tuple[dict[str, dict], int]:
    """Return key -> `dtype` (a name of ITEM_BYTES), `shape` and `data_offsets` of every tensor; where the data begin.

    Raises:
        CheckpointError: the file is absent or cut short, or holds a dtype that weights are not stored in.
    """
    try:
        with safe_open(path, framework="np"):
            pass  # for the library's checks: a whole header, offsets without gaps, the file's length
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            headers = json.loads(file.read(length))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}",
            "a complete safetensors file",
            "copy or download the file again",
        ) from None
    headers.pop("__metadata__", None)
    for key, header in headers.items():
        if header["dtype"] not in ITEM_BYTES:
            raise CheckpointError(
                f"{key} in {path} has dtype {header['dtype']}",
                f"one of {', '.join(ITEM_BYTES)}",
                "convert an unquantized checkpoint",
            )
    return headers, LENGTH_BYTES + length
