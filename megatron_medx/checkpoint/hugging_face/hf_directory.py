"""A Hugging Face model directory: read tensor by tensor, and written shard by shard.

Reading sees headers first (names, shapes, dtypes) and data only when asked. Writing takes an iterator of tensors in a
planned order. Neither knows Megatron.

The experts of a layer lie stacked in two tensors. On the hub, and in what is written here, each is a matrix that takes
rows: gate_up_proj [E, H, 2I], down_proj [E, I, H]. transformers 5 saves [E, 2I, H] and [E, H, I]; such a directory is
recognized by its shapes and handed out in the hub's layout. An output layer that repeats the embedding it is tied to is
not handed out.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from megatron_medx.checkpoint.hugging_face.hf_config import (
    GENERATION_CONFIG_FILE,
    config_json,
    generation_config_json,
    read_config,
)
from megatron_medx.checkpoint.hugging_face.hf_files import (
    EMBEDDING,
    INDEX_FILE,
    OUTPUT,
    in_hub_layout,
    is_transposed,
    open_weight_files,
    without_repeated_output,
)
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.config import processor
from megatron_medx.config.checkpoint_folders import CONFIG_FILE
from megatron_medx.config.model import ModelConfig


class HfDirectory:
    """A directory opened for reading.

    Attributes:
        folder: where it is; the processor files lie beside the weights.
        model: sizes from `config.json`.
        specs: key -> shape and dtype, from the files' headers, in the hub's layout.
    Raises:
        CheckpointError: no or unreadable weights, another architecture or format, an index that does not fit its
            shards, or an output layer that differs from the embedding that it is tied to.
    """

    def __init__(self, folder: Path):
        self.folder = self.processor_folder = folder
        read_config(folder / CONFIG_FILE)  # what it refuses says more than missing or unreadable weights
        files = open_weight_files(folder)
        self.model = read_config(folder / CONFIG_FILE, has_output_layer=OUTPUT in files)
        self._file_of = without_repeated_output(
            files,
            output=OUTPUT,
            embedding=EMBEDDING,
            is_tied=self.model.tie_embeddings,
            folder=folder,
        )
        stored = {key: file.specs[key] for key, file in self._file_of.items()}
        self._transposed = {key for key, spec in stored.items() if is_transposed(key, spec, self.model.hidden_size)}
        self.specs: dict[str, TensorSpec] = in_hub_layout(stored, self.model.hidden_size)

    def read(self, key: str) -> torch.Tensor:
        """Return one tensor, in the hub's layout."""
        tensor = self._file_of[key].read(key)
        return tensor.transpose(1, 2).contiguous() if key in self._transposed else tensor


def write_shard_index(folder: Path, shards: Mapping[str, Mapping[str, TensorSpec]]) -> None:
    """Write the index of a directory's files; one file alone has none.

    Args:
        folder: the directory under construction.
        shards: file name -> its tensors.
    """
    if len(shards) == 1:
        return
    weight_map = {key: name for name, shard in shards.items() for key in shard}
    total = sum(spec.num_bytes for shard in shards.values() for spec in shard.values())
    _write_json(
        folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    )


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
