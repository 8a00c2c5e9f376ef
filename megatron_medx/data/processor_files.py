"""Which files make a Hugging Face processor directory, and what a run needs to know of one.

Training reads such a directory, export copies it beside the weights. The files are those of the hub's own Qwen3-VL
directories: `preprocessor_config.json` with its video sibling, not the `processor_config.json` that transformers 5
writes and transformers 4 cannot read.
"""

import json
import shutil
from pathlib import Path

from megatron_medx.errors import DataError

REQUIRED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)

OPTIONAL_FILES = ("generation_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
"""Copied where they are; older hub directories carry some of them."""

TOKEN_OF_FIELD = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
"""Field of ModelConfig -> the special token whose id it holds."""


def check_processor(folder: Path) -> None:
    """Refuse a directory that lacks a file of a processor.

    Raises:
        DataError: names every missing file.
    """
    missing = [name for name in REQUIRED_FILES if not (Path(folder) / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}",
            "a Qwen3-VL processor directory as on the hub: " + ", ".join(REQUIRED_FILES),
            "set data.processor to such a directory; `make demo` builds one at <data.path>/processor",
        )


def copy_processor(
    source: Path, target: Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> list[str]:
    """Copy a processor directory's files, byte for byte, and state the area limits that training used.

    Args:
        source: processor directory.
        target: directory to write into; made if missing.
        min_pixels: smallest image area in px; None leaves what the source says.
        max_pixels: largest image area in px; None leaves what the source says.

    Returns:
        Names of the files written.

    Raises:
        DataError: the source lacks a file.
    """
    check_processor(source)
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    names = [name for name in REQUIRED_FILES + OPTIONAL_FILES if (Path(source) / name).is_file()]
    for name in names:
        shutil.copyfile(Path(source) / name, target / name)
    limits = {"shortest_edge": min_pixels, "longest_edge": max_pixels}  # areas, in spite of their names
    stated = {name: value for name, value in limits.items() if value is not None}
    path = target / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    if {**settings.get("size", {}), **stated} != settings.get("size", {}):
        settings["size"] = {**settings.get("size", {}), **stated}
        path.write_text(json.dumps(settings, indent=2) + "\n")
    return names


def processor_token_ids(folder: Path) -> dict[str, int]:
    """Ids of the vision tokens, under the names of ModelConfig's fields.

    Raises:
        DataError: the directory has no such token.
    """
    check_processor(folder)
    added = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    id_of_token = {entry["content"]: entry["id"] for entry in added}
    missing = [token for token in TOKEN_OF_FIELD.values() if token not in id_of_token]
    if missing:
        raise DataError(
            f"{folder}/tokenizer.json has no {', '.join(missing)}",
            "Qwen's special tokens",
            "use the tokenizer of a Qwen VL model, or add them with Qwen's names",
        )
    return {field: id_of_token[token] for field, token in TOKEN_OF_FIELD.items()}
