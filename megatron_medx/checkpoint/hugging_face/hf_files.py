"""The files of a Hugging Face directory, opened for reading: config.json and the safetensors with their index.

Whole, unquantized weights of one network are read and nothing else; what is beside that (adapters, quantized weights,
pickles) is refused here, with the way to turn it into such a directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.errors import CheckpointError

if TYPE_CHECKING:  # a plan of a conversion needs headers alone, and torch takes 550 MB
    from megatron_medx.checkpoint.hugging_face.safetensors_stream import SafetensorsFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
"""What makes a folder one of PEFT's adapters."""
PICKLES = "pytorch_model*.bin*"
"""Weights as torch pickles, which run code when they are opened; with their index."""

OUTPUT, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
"""Keys of the two matrices with a row for each token."""

EXPERT_HIDDEN_DIM = {".mlp.experts.gate_up_proj": 1, ".mlp.experts.down_proj": 2}
"""Ending of a key of stacked experts -> which dimension is the hidden size in the hub's layout."""

_COMPARED_BYTES = 64_000_000
"""Read of each tensor at once when two are compared."""


def read_config_json(path: Path) -> dict:
    """Return the content of a config.json.

    Args:
        path: the file; its folder is asked what it is when there is none.
    Raises:
        CheckpointError: absent, not JSON, or it describes an adapter or quantized weights.
    """
    _refuse_adapter(path.parent)
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}",
            "a Hugging Face directory with a valid config.json",
            "check the path, or download the directory again",
        ) from None
    _refuse_quantized(config, path)
    return config


def open_weight_files[File](folder: Path, open_file: Callable[[Path], File] | None = None) -> dict[str, File]:
    """Open the weights of a Hugging Face directory, headers only.

    Args:
        folder: holds one safetensors file, or an index and the shards that it names.
        open_file: opens one, as an object with `path` and `specs`; None makes it a SafetensorsFile.
    Returns:
        Key -> the file that holds the tensor.
    Raises:
        CheckpointError: no or unreadable weights, other formats, or an index that does not fit its shards.
    """
    index = _weight_map(folder)
    names = sorted(set(index.values())) if index is not None else [SINGLE_FILE]
    if open_file is None:
        from megatron_medx.checkpoint.hugging_face.safetensors_stream import SafetensorsFile as open_file
    files = [open_file(folder / name) for name in names]
    file_of = {key: file for file in files for key in file.specs}
    if index is None:
        return file_of
    stored = {key: file.path.name for key, file in file_of.items()}
    wrong = sorted(key for key in {*stored, *index} if stored.get(key) != index.get(key))
    if wrong or sum(len(file.specs) for file in files) != len(stored):
        raise CheckpointError(
            f"{folder}: {INDEX_FILE} and the shards disagree about {', '.join(wrong[:8]) or 'repeated keys'}",
            "every tensor in the one shard that the index names",
            "download the directory again",
        )
    return file_of


def without_repeated_output(
    files: dict[str, SafetensorsFile], *, output: str, embedding: str, is_tied: bool, folder: Path
) -> dict[str, SafetensorsFile]:
    """Leave out an output layer that a tied network stores beside the embedding that it is.

    transformers leaves it out; trainers that save a state dict as it is write both. transformers 4.57 also writes both,
    and trains them apart, where config.json ties them at the top and its text section does not say so.

    Args:
        files: as from `open_weight_files`.
        output, embedding: keys of the output layer's and the embedding's weight.
        is_tied: what config.json says.
        folder: for the message.
    Raises:
        CheckpointError: the two differ in a bit, so that config.json and the weights contradict each other.
    """
    if not (is_tied and output in files and embedding in files):
        return files
    if not _same_bytes(files[output], output, files[embedding], embedding):
        raise CheckpointError(
            f"{folder}: tie_word_embeddings is true, and {output} differs from {embedding}",
            "one weight for both, or an untied network",
            "set tie_word_embeddings to false in config.json if the output layer was trained by itself "
            "(transformers 4.57 does so unless text_config says true, too)",
        )
    return {key: file for key, file in files.items() if key != output}


def is_transposed(key: str, spec: TensorSpec, hidden_size: int) -> bool:
    """Whether a tensor is one of stacked experts in the layout of transformers 5.

    Args:
        key: its name; only the ending matters.
        spec: shape as stored.
        hidden_size: width of the decoder.
    """
    dim = next((dim for ending, dim in EXPERT_HIDDEN_DIM.items() if key.endswith(ending)), None)
    return dim is not None and len(spec.shape) == 3 and spec.shape[dim] != hidden_size == spec.shape[3 - dim]


def in_hub_layout(specs: dict[str, TensorSpec], hidden_size: int) -> dict[str, TensorSpec]:
    """The same tensors with the shapes that stacked experts have in the hub's layout.

    Args:
        specs: as stored, in either layout.
        hidden_size: width of the decoder.
    """
    return {
        key: replace(spec, shape=(spec.shape[0], spec.shape[2], spec.shape[1]))
        if is_transposed(key, spec, hidden_size)
        else spec
        for key, spec in specs.items()
    }


def _weight_map(folder: Path) -> dict[str, str] | None:
    """The index; None where there is one file instead."""
    path = folder / INDEX_FILE
    if path.is_file():
        try:
            return dict(json.loads(path.read_text())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error!r}",
                "an index with a weight_map",
                "copy or download the file again",
            ) from None
    if (folder / SINGLE_FILE).is_file():
        return None
    _refuse_pickles(folder)
    raise CheckpointError(
        f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}",
        "weights as safetensors",
        "download the safetensors files (other formats are not read)",
    )


def _refuse_adapter(folder: Path) -> None:
    """An adapter's tensors are changes of another network's; beside whole weights, which of both is meant is open."""
    path = folder / ADAPTER_FILE
    if not path.is_file():
        return
    base = _adapter_base(path)
    raise CheckpointError(
        f"{folder} holds an adapter ({ADAPTER_FILE}) for {base}",
        "the whole weights of a network",
        f"merge it into its base and save that: PeftModel.from_pretrained(base, {str(folder)!r})"
        ".merge_and_unload().save_pretrained(NEW_FOLDER); if the weights here are merged already, remove "
        f"{ADAPTER_FILE}",
    )


def _adapter_base(path: Path) -> str:
    """What an adapter says it belongs to; its file is only quoted, so a broken one is no reason to stop differently."""
    try:
        return str(json.loads(path.read_text())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return "a base that it does not name"


def _refuse_quantized(config: dict, path: Path) -> None:
    text = config.get("text_config")
    sections = (config, text if isinstance(text, dict) else {})
    found = next((one["quantization_config"] for one in sections if one.get("quantization_config")), None)
    if found is None:
        return
    method = found.get("quant_method", "an unnamed method") if isinstance(found, dict) else found
    raise CheckpointError(
        f"{path}: the weights are quantized ({method})",
        "weights in float32, bfloat16 or float16, which conversion moves bit by bit",
        "name the directory that it was quantized from (on the hub: the name without -FP8, -AWQ or -GPTQ)",
    )


def _refuse_pickles(folder: Path) -> None:
    pickles = sorted(path.name for path in folder.glob(PICKLES))
    if pickles:
        raise CheckpointError(
            f"{folder} holds {pickles[0]} and no safetensors",
            "weights as safetensors; pickles run code when they are opened",
            "load it with transformers' from_pretrained and write it with save_pretrained, which makes safetensors",
        )


def _same_bytes(first: SafetensorsFile, first_key: str, second: SafetensorsFile, second_key: str) -> bool:
    """Whether two stored tensors are one, bit by bit; a few blocks of them in memory."""
    import torch

    if first.specs[first_key] != second.specs[second_key]:
        return False
    blocks = zip(first.blocks(first_key, _COMPARED_BYTES), second.blocks(second_key, _COMPARED_BYTES), strict=True)
    return all(torch.equal(one, other) for one, other in blocks)
