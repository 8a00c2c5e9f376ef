"""The Hugging Face processor directory: tokenizer, chat template and image-processor files that travel with a model.

Training reads such a directory and keeps a copy beside its checkpoints; export puts the copy beside the weights. The
files are those of the hub's own Qwen3-VL directories: `preprocessor_config.json` with its video sibling, not the
`processor_config.json` that transformers 5 writes and transformers 4 cannot read (`saved_processor.py` has the change).
"""

import json
import shutil
from pathlib import Path

from megatron_medx.config.saved_processor import NESTED_FILE, hub_files, is_nested
from megatron_medx.errors import DataError

PROCESSOR_FOLDER = "processor"
"""Its name in a data folder and in a checkpoint root."""

REQUIRED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)

OPTIONAL_FILES = (
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "processor_config.json",
)
"""Copied where they are; older and newer hub directories carry some of them."""

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
            "set data.processor to such a directory; `make demo` builds one at <data.path>/processor, and "
            "`medx convert to-megatron DIR OUT` makes OUT/processor of a directory that transformers 5 saved",
        )


def copy_known_files(source: Path, target: Path) -> list[str]:
    """Copy the files of a processor, byte for byte, and write in the hub's style what transformers 5 saved otherwise.

    Returns:
        Names of the files in `target`.

    Raises:
        DataError: a file that has to be read is no JSON.
    """
    changed = hub_files(source)
    left_out = {*changed, NESTED_FILE} if is_nested(source) else set(changed)  # transformers 5 would read it first
    names = [name for name in REQUIRED_FILES + OPTIONAL_FILES if (source / name).is_file() and name not in left_out]
    if names or changed:
        target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, target / name)
    for name, text in changed.items():
        (target / name).write_text(text, encoding="utf-8")
    return [*names, *changed]


def copy_processor(source: Path, target: Path, *, min_pixels: int, max_pixels: int) -> None:
    """Copy a whole processor directory and state in it the image areas that training used.

    Args:
        source: processor directory.
        target: directory to write into; made if missing.
        min_pixels, max_pixels: smallest and largest image area, px.

    Raises:
        DataError: the source lacks a file.
    """
    check_processor(source)
    copy_known_files(source, target)
    path = target / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    limits = {"shortest_edge": min_pixels, "longest_edge": max_pixels}  # areas, in spite of their names
    if settings.get("size") != limits:
        path.write_text(json.dumps({**settings, "size": limits}, indent=2) + "\n")


def vision_token_ids(folder: Path) -> dict[str, int]:
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


def generation_token_ids(folder: Path) -> dict[str, int]:
    """Ids of the tokenizer's end-of-turn, end-of-document and padding tokens, as generation configs name them.

    Qwen's tokenizers have no beginning token; their generation configs give the end-of-document token, which is also
    the padding token, as `bos_token_id`. Empty where the folder holds no tokenizer.
    """
    if not (folder / "tokenizer_config.json").is_file():
        return {}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    ids = {token["content"]: int(index) for index, token in config.get("added_tokens_decoder", {}).items()}
    if (folder / "tokenizer.json").is_file():
        added = json.loads((folder / "tokenizer.json").read_text()).get("added_tokens", [])
        ids.update({token["content"]: token["id"] for token in added})
    found = {}
    for name, key in (("bos_token_id", "pad_token"), ("eos_token_id", "eos_token"), ("pad_token_id", "pad_token")):
        token = config.get(key)
        token = token["content"] if isinstance(token, dict) else token
        if token in ids:
            found[name] = ids[token]
    return found
