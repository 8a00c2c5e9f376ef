"""A conversion's source as far as a plan needs it: sizes, names, shapes and dtypes, without values and without torch.

torch alone takes 550 MB of memory and seconds to load; the plan of the largest network is to be had in less. Known this
way are a Hugging Face directory with its weights (headers are read), one that holds only config.json, and a checkpoint
root that holds only run.yaml. Other sources are opened as for the conversion (`convert.py`), with torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from megatron_medx.checkpoint.hugging_face.hf_config import read_config
from megatron_medx.checkpoint.hugging_face.hf_files import (
    INDEX_FILE,
    OUTPUT,
    SINGLE_FILE,
    in_hub_layout,
    open_weight_files,
)
from megatron_medx.checkpoint.hugging_face.safetensors_header import ITEM_BYTES, read_header
from megatron_medx.checkpoint.layout.parts import PARTS, check_part, stored_part
from megatron_medx.checkpoint.layout.rules import Binding, bindings, check_total, hf_shapes
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.layout.unambiguous import check_expert_sides, check_group_dtypes
from megatron_medx.config.checkpoint_folders import CONFIG_FILE
from megatron_medx.config.model import ModelConfig
from megatron_medx.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class PlannedDtype:
    """What a plan needs of a torch.dtype: its name, and the bytes of a value."""

    name: str
    itemsize: int

    def __str__(self) -> str:
        return f"torch.{self.name}"


STORED_DTYPES = {
    name: PlannedDtype(ours, ITEM_BYTES[name])
    for name, ours in (("F32", "float32"), ("BF16", "bfloat16"), ("F16", "float16"))
}
"""Names of the safetensors format -> dtype."""

CHOSEN_DTYPES = {"bf16": STORED_DTYPES["BF16"], "fp32": STORED_DTYPES["F32"]}
"""Names of `--dtype` -> dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedContent:
    """What a `Content` says of itself before anything is read; the fields have the same names and meanings."""

    model: ModelConfig
    bound: tuple[Binding, ...]
    specs: dict[str, TensorSpec]
    folders: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, in either layout."""
        return sum(spec.num_bytes for spec in self.specs.values())


class _HeaderFile:
    """A safetensors file of which only the header is read."""

    def __init__(self, path: Path):
        self.path = path
        headers, _ = read_header(path)
        self.specs = {
            key: TensorSpec(tuple(header["shape"]), STORED_DTYPES[header["dtype"]]) for key, header in headers.items()
        }


def has_weights(folder: Path) -> bool:
    """Whether a Hugging Face directory holds more than config.json."""
    return any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))


def planned_hf(folder: Path, dtype: str = "keep") -> PlannedContent:
    """What converting a Hugging Face directory would write, from its headers or from config.json alone.

    Args:
        folder: with config.json; with weights or none.
        dtype: `keep`, or a name of CHOSEN_DTYPES.
    Raises:
        CheckpointError: it is not what a conversion needs, or there are no weights and nothing names a dtype.
    """
    files = open_weight_files(folder, _HeaderFile) if has_weights(folder) else {}
    model = read_config(folder / CONFIG_FILE, has_output_layer=OUTPUT in files if files else None)
    if part := stored_part(folder):
        raise CheckpointError(
            f"{folder} holds the {part} part of a network alone", "a whole network", "name another directory"
        )
    check_expert_sides(model, folder)
    bound = bindings(model)
    if not files:
        return _from_sizes(model, bound, folder, _config_dtype(folder) if dtype == "keep" else CHOSEN_DTYPES[dtype])
    stored = {key: file.specs[key] for key, file in files.items()}
    if model.tie_embeddings:
        stored.pop(OUTPUT, None)  # whether it is the embedding once more is seen when it is read
    specs = in_hub_layout(stored, model.hidden_size)
    check_total(hf_shapes(bound), specs, str(folder))
    check_group_dtypes(specs, bound, folder)
    chosen = CHOSEN_DTYPES.get(dtype)
    return PlannedContent(
        model=model,
        bound=bound,
        specs={key: TensorSpec(specs[key].shape, chosen or specs[key].dtype) for one in bound for key in one.hf_keys},
        folders=(folder,),
    )


def planned_megatron(model: ModelConfig, folder: Path, dtype: str, only: str | None = None) -> PlannedContent:
    """What exporting a checkpoint of these sizes would write; there need not be one.

    Args:
        model: sizes.
        folder: where the checkpoint is or would be.
        dtype: a name of CHOSEN_DTYPES.
        only: a part, as in `to_hf`.
    Raises:
        CheckpointError: no such dtype or part.
    """
    check_part(only)
    if dtype not in CHOSEN_DTYPES:
        raise CheckpointError(
            f"{folder} holds no weights, and --dtype {dtype}",
            "the dtype of the weights that will lie there",
            f"add --dtype {' or --dtype '.join(CHOSEN_DTYPES)}",
        )
    bound = bindings(model) if only is None else bindings(model, PARTS[only])
    return _from_sizes(model, bound, folder, CHOSEN_DTYPES[dtype])


def _from_sizes(model: ModelConfig, bound: tuple[Binding, ...], folder: Path, dtype: PlannedDtype) -> PlannedContent:
    specs = {key: TensorSpec(shape, dtype) for key, shape in hf_shapes(bound).items()}
    return PlannedContent(model=model, bound=bound, specs=specs, folders=(folder,))


def _config_dtype(folder: Path) -> PlannedDtype:
    """The dtype that config.json says the weights have."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    sections = (config, config.get("text_config", {}))
    named = next((one[name] for one in sections for name in ("dtype", "torch_dtype") if name in one), None)
    found = next((dtype for dtype in STORED_DTYPES.values() if dtype.name == named), None)
    if found is None:
        raise CheckpointError(
            f"{folder} holds no weights, and {CONFIG_FILE} names the dtype {named}",
            "the dtype of the weights that will lie there",
            f"add --dtype {' or --dtype '.join(CHOSEN_DTYPES)}",
        )
    return found
