"""The parts of a network that a Hugging Face directory may hold alone, and how such a directory says so.

Its config.json is that of the whole network, with one field more. Training and conversion want whole networks and
refuse a part; comparing and joining can do with one.
"""

import json
from pathlib import Path

from megatron_medx.checkpoint.layout.rules import DECODER_RULES, MERGER_RULES, VISION_RULES
from megatron_medx.config.checkpoint_folders import CONFIG_FILE
from megatron_medx.errors import CheckpointError

PARTS = {"vision": VISION_RULES, "language": DECODER_RULES, "merger": MERGER_RULES}
"""Names of `only`, with the rules of their tensors; together they are the network."""

PART_FIELD = "medx_part"
"""Field of config.json that names the part whose weights lie beside it; absent where they are whole."""


def check_part(name: str | None) -> None:
    """Refuse what is neither a part's name nor None.

    Raises:
        CheckpointError: with the names.
    """
    if name is not None and name not in PARTS:
        raise CheckpointError(f"part {name!r}", f"one of {', '.join(PARTS)}", "choose one of them, or none for all")


def stored_part(folder: Path) -> str | None:
    """The name of the part that a Hugging Face directory says it holds alone; None for a whole network.

    Raises:
        CheckpointError: the directory names a part that there is not.
    """
    part = json.loads((folder / CONFIG_FILE).read_text()).get(PART_FIELD)
    check_part(part)
    return part


def mark_part(folder: Path, part: str) -> None:
    """Say in a directory's config.json that the weights beside it are one part's alone."""
    path = folder / CONFIG_FILE
    config = {**json.loads(path.read_text()), PART_FIELD: part}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
