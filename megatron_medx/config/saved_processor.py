"""The processor files of a directory that transformers 5 saved, as the hub's own directories have them.

transformers 5 saves image and video settings in one nested `processor_config.json`, leaves out `vocab.json` and
`merges.txt`, lists the special tokens as `extra_special_tokens` (transformers 4.57 stops there: AttributeError), and
keeps in `tokenizer.json` how the last batch was padded. What is written here is read by both.
"""

import json
from pathlib import Path

from megatron_medx.errors import DataError

NESTED_FILE = "processor_config.json"

NESTED_SECTIONS = (
    ("image_processor", "preprocessor_config.json"),
    ("video_processor", "video_preprocessor_config.json"),
)
"""Section of the nested file -> the hub's file with the same settings."""

HUB_IMAGE_PROCESSORS = {
    "Qwen2VLImageProcessor": "Qwen2VLImageProcessorFast",
    "Qwen2VLImageProcessorPil": "Qwen2VLImageProcessor",
}
"""Class in transformers 5 -> the class of the same computation in 4.57, which 5 reads too."""

STATE_OF_A_CALL = (
    "backend", "is_local", "local_files_only",
    "max_length", "pad_to_multiple_of", "pad_token_type_id", "stride", "truncation_side", "truncation_strategy",
)  # fmt: skip
"""What a saved tokenizer_config.json holds of how the tokenizer was loaded and last called."""


def is_nested(folder: Path) -> bool:
    """Whether the folder's `processor_config.json` holds the image settings; transformers 5 then reads no other."""
    return "image_processor" in _read(folder / NESTED_FILE)


def hub_files(folder: Path) -> dict[str, str]:
    """The files, name -> text, that have to be written otherwise than they lie there; none for a hub directory.

    Raises:
        DataError: a file is no JSON.
    """
    files: dict[str, dict | str] = {}
    nested = _read(folder / NESTED_FILE)
    if "image_processor" in nested:
        for section, name in NESTED_SECTIONS:
            if section in nested:
                files[name] = _flat(nested, section)
    tokenizer = _read(folder / "tokenizer.json")
    if tokenizer.get("padding") or tokenizer.get("truncation"):
        files["tokenizer.json"] = {**tokenizer, "padding": None, "truncation": None}
    if tokenizer.get("model", {}).get("type") == "BPE" and not (folder / "vocab.json").is_file():
        files["vocab.json"] = tokenizer["model"]["vocab"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
        files["merges.txt"] = "\n".join(("#version: 0.2", *merges, ""))
    settings = _read(folder / "tokenizer_config.json")
    if isinstance(settings.get("extra_special_tokens"), list):
        files["tokenizer_config.json"] = _hub_tokenizer_settings(settings, tokenizer)
    return {name: content if isinstance(content, str) else _text(content) for name, content in files.items()}


def _flat(nested: dict, section: str) -> dict:
    settings = dict(nested[section])
    if "image_processor_type" in settings:
        kind = settings["image_processor_type"]
        settings["image_processor_type"] = HUB_IMAGE_PROCESSORS.get(kind, kind)
    return {**settings, "processor_class": nested.get("processor_class", "Qwen3VLProcessor")}


def _hub_tokenizer_settings(settings: dict, tokenizer: dict) -> dict:
    """The settings with special tokens under the names that both versions read."""
    kept = {name: value for name, value in settings.items() if name not in STATE_OF_A_CALL}
    special = kept.pop("extra_special_tokens")
    added = {
        str(token["id"]): {name: value for name, value in token.items() if name != "id"}
        for token in tokenizer.get("added_tokens", ())
    }
    return {"added_tokens_decoder": added, "additional_special_tokens": special, **kept}


def _read(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}", "whole files of a processor", "save or copy it again") from None


def _text(content: dict) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
