"""The tokenizer, chat-template and image-processor files that travel with the weights, byte for byte.

A Hugging Face directory holds them beside the weights, a Megatron checkpoint in its `processor/` folder.
"""

import json
import shutil
from pathlib import Path

PROCESSOR_FOLDER = "processor"

PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
"""Every file name that is copied; anything else in the folder is left where it is."""


def copy_processor_files(source: Path, target: Path) -> list[str]:
    """Copy the known files that exist; return their names."""
    names = [name for name in PROCESSOR_FILES if (source / name).is_file()]
    if names:
        target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names


def special_token_ids(folder: Path) -> dict[str, int]:
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
