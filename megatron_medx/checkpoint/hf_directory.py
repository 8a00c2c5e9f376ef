"""A Hugging Face model directory: read tensor by tensor, and written shard by shard.

Reading sees headers first (names, shapes, dtypes) and data only when asked. Writing takes an iterator of tensors in a
planned order. Neither knows Megatron.

The experts of a layer lie stacked in two tensors. On the hub, and in what is written here, each is a matrix that takes
rows: gate_up_proj [E, H, 2I], down_proj [E, I, H]. transformers 5 saves [E, 2I, H] and [E, H, I]; such a directory is
recognized by its shapes and handed out in the hub's layout.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from megatron_medx.checkpoint.hf_config import (
    GENERATION_CONFIG_FILE,
    config_json,
    generation_config_json,
    read_config,
)
from megatron_medx.checkpoint.safetensors_stream import SafetensorsFile, write_safetensors
from megatron_medx.checkpoint.streaming import read_ahead
from megatron_medx.checkpoint.tensor_spec import TensorSpec
from megatron_medx.config import processor
from megatron_medx.config.checkpoint_folders import CONFIG_FILE
from megatron_medx.config.model import ModelConfig
from megatron_medx.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

EXPERT_HIDDEN_DIM = {".mlp.experts.gate_up_proj": 1, ".mlp.experts.down_proj": 2}
"""Ending of a key of stacked experts -> which dimension is the hidden size in the hub's layout."""


class HfDirectory:
    """A directory opened for reading.

    Attributes:
        folder: where it is; the processor files lie beside the weights.
        model: sizes from `config.json`.
        specs: key -> shape and dtype, from the files' headers, in the hub's layout.
    Raises:
        CheckpointError: no or unreadable weights, another architecture, or an index that does not fit its shards.
    """

    def __init__(self, folder: Path):
        self.folder = self.processor_folder = folder
        self.model = read_config(folder / CONFIG_FILE)
        self._files = {name: SafetensorsFile(folder / name) for name in self._file_names()}
        self._file_of = {key: file for file in self._files.values() for key in file.specs}
        stored = {key: file.specs[key] for key, file in self._file_of.items()}
        self._transposed = {key for key, spec in stored.items() if _is_transposed(key, spec, self.model.hidden_size)}
        self.specs: dict[str, TensorSpec] = {
            key: replace(spec, shape=(spec.shape[0], spec.shape[2], spec.shape[1])) if key in self._transposed else spec
            for key, spec in stored.items()
        }
        self._check_index()

    def _file_names(self) -> list[str]:
        self._index: dict[str, str] = {}
        if (self.folder / INDEX_FILE).is_file():
            try:
                self._index = json.loads((self.folder / INDEX_FILE).read_text())["weight_map"]
            except (ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{self.folder / INDEX_FILE} cannot be read: {error!r}",
                    "an index with a weight_map",
                    "copy or download the file again",
                ) from None
            return sorted(set(self._index.values()))
        if (self.folder / SINGLE_FILE).is_file():
            return [SINGLE_FILE]
        raise CheckpointError(
            f"{self.folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}",
            "weights as safetensors",
            "download the safetensors files (other formats are not read)",
        )

    def _check_index(self) -> None:
        """The index and the shards' own headers must name the same tensors in the same files."""
        if not self._index:
            return
        stored = {key: file.path.name for key, file in self._file_of.items()}
        num_stored = sum(len(file.specs) for file in self._files.values())
        wrong = sorted(key for key in {*stored, *self._index} if stored.get(key) != self._index.get(key))
        if wrong or num_stored != len(stored):
            raise CheckpointError(
                f"{self.folder}: {INDEX_FILE} and the shards disagree about {', '.join(wrong[:8]) or 'repeated keys'}",
                "every tensor in the one shard that the index names",
                "download the directory again",
            )

    def read(self, key: str) -> torch.Tensor:
        """Return one tensor, in the hub's layout."""
        tensor = self._file_of[key].read(key)
        return tensor.transpose(1, 2).contiguous() if key in self._transposed else tensor


def _is_transposed(key: str, spec: TensorSpec, hidden_size: int) -> bool:
    """Whether a tensor is one of stacked experts in the layout of transformers 5."""
    dim = next((dim for ending, dim in EXPERT_HIDDEN_DIM.items() if key.endswith(ending)), None)
    return dim is not None and len(spec.shape) == 3 and spec.shape[dim] != hidden_size == spec.shape[3 - dim]


def plan_shards(specs: Mapping[str, TensorSpec], shard_size_bytes: int) -> list[dict[str, TensorSpec]]:
    """Cut an ordered set of tensors into shards of at most `shard_size_bytes` (a larger tensor gets its own)."""
    shards, size = [{}], 0
    for key, spec in specs.items():
        if shards[-1] and size + spec.num_bytes > shard_size_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = spec
        size += spec.num_bytes
    return shards


def write_weights(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterator[tuple[str, torch.Tensor]],
    shard_size_bytes: int,
) -> None:
    """Write the weights, and the index where there is more than one shard.

    Args:
        folder: an existing directory.
        specs: every tensor, in the order in which `tensors` yields them.
        tensors: (key, tensor) pairs.
        shard_size_bytes: largest size of one file's data.
    """
    shards = plan_shards(specs, shard_size_bytes)
    tensors = read_ahead(tensors)
    if len(shards) == 1:
        write_safetensors(folder / SINGLE_FILE, shards[0], tensors)
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard, tensors)
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(spec.num_bytes for spec in specs.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / INDEX_FILE, index)


def write_companions(folder: Path, model: ModelConfig, dtype: torch.dtype, processor_folder: Path) -> None:
    """Write config.json and generation_config.json, and copy the processor files.

    Args:
        folder: the directory under construction.
        model: sizes.
        dtype: dtype of the weights.
        processor_folder: where the tokenizer, template and preprocessor files lie; a generation_config.json among
            them is kept as it is.
    """
    copied = processor.copy_known_files(processor_folder, folder)
    token_ids = processor.generation_token_ids(processor_folder)
    _write_json(folder / CONFIG_FILE, config_json(model, dtype, token_ids))
    if GENERATION_CONFIG_FILE not in copied:
        _write_json(folder / GENERATION_CONFIG_FILE, generation_config_json(token_ids))


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
