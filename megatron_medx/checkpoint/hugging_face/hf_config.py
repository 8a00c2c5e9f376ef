"""ModelConfig <-> a hub-style `config.json`: tables that are read in both directions.

Written is what Qwen's own directories on the hub hold (`rope_theta` + `rope_scaling`), because transformers 4.57 and
the inference servers silently misread the newer `rope_parameters` style. Read are both styles. Values that our network
has built in (activations, interleaved M-RoPE, ...) are checked on reading: another value is another network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_medx.checkpoint.hugging_face.hf_files import read_config_json
from megatron_medx.config.model import ModelConfig, VisionConfig
from megatron_medx.errors import CheckpointError

if TYPE_CHECKING:  # a plan of a conversion needs sizes alone, and torch takes 550 MB
    import torch

GENERATION_CONFIG_FILE = "generation_config.json"
# The release whose layout the files follow. Newer readers upgrade it; older ones would warn about a newer number.
WRITTEN_FOR_TRANSFORMERS = "4.57.0"

FIELDS = (
    ("text_config.hidden_size", "hidden_size"),
    ("text_config.num_hidden_layers", "num_layers"),
    ("text_config.num_attention_heads", "num_heads"),
    ("text_config.num_key_value_heads", "num_kv_heads"),
    ("text_config.head_dim", "head_dim"),
    ("text_config.intermediate_size", "ffn_hidden_size"),
    ("text_config.vocab_size", "vocab_size"),
    ("text_config.max_position_embeddings", "max_positions"),
    ("text_config.rms_norm_eps", "rms_norm_eps"),
    ("text_config.rope_theta", "rope_theta"),
    ("text_config.rope_scaling.mrope_section", "mrope_section"),
    ("tie_word_embeddings", "tie_embeddings"),
    ("image_token_id", "image_token_id"),
    ("video_token_id", "video_token_id"),
    ("vision_start_token_id", "vision_start_token_id"),
    ("vision_end_token_id", "vision_end_token_id"),
    ("vision_config.hidden_size", "vision.hidden_size"),
    ("vision_config.depth", "vision.num_layers"),
    ("vision_config.num_heads", "vision.num_heads"),
    ("vision_config.intermediate_size", "vision.ffn_hidden_size"),
    ("vision_config.deepstack_visual_indexes", "vision.deepstack_layers"),
    ("vision_config.patch_size", "vision.patch_size"),
    ("vision_config.temporal_patch_size", "vision.temporal_patch_size"),
    ("vision_config.spatial_merge_size", "vision.merge_size"),
    ("vision_config.num_position_embeddings", "vision.num_position_embeddings"),
    ("vision_config.in_channels", "vision.in_channels"),
)
"""(path in config.json, path in ModelConfig)."""

MOE_FIELDS = (
    ("text_config.num_experts", "num_experts"),
    ("text_config.num_experts_per_tok", "experts_per_token"),
    ("text_config.moe_intermediate_size", "expert_ffn_hidden_size"),
    ("text_config.router_aux_loss_coef", "router_aux_loss_coef"),
)
"""What a mixture of experts has besides."""

BUILT_IN = (
    ("text_config.hidden_act", "silu"),
    ("text_config.attention_bias", False),
    ("text_config.rope_scaling.rope_type", "default"),
    ("text_config.rope_scaling.mrope_interleaved", True),
    ("vision_config.hidden_act", "gelu_pytorch_tanh"),
)
"""(path in config.json, the only value our network computes). Checked on reading where present."""

BUILT_IN_TRANSFORMERS_5 = (
    ("vision_config.rope_parameters.rope_theta", 10000.0),
    ("vision_config.rope_parameters.rope_type", "axial"),
)
"""More such values that only transformers 5 states; checked where present, never written."""

INERT = (
    ("text_config.attention_dropout", 0.0),
    ("text_config.initializer_range", 0.02),
    ("text_config.use_cache", True),
    ("vision_config.initializer_range", 0.02),
)
"""(path, value) written as the hub has them; they do not change what the network computes, so they are not read."""


@dataclass(frozen=True, slots=True)
class Family:
    """One of the two architectures: its name and its own lines of the tables."""

    architecture: str
    fields: tuple[tuple[str, str], ...]
    built_in: tuple[tuple[str, object], ...]
    inert: tuple[tuple[str, object], ...]


DENSE = Family(
    architecture="Qwen3VLForConditionalGeneration",
    fields=FIELDS,
    built_in=(("model_type", "qwen3_vl"), ("text_config.model_type", "qwen3_vl_text"), *BUILT_IN),
    inert=(("vision_config.model_type", "qwen3_vl"), *INERT),
)
MIXTURE_OF_EXPERTS = Family(
    architecture="Qwen3VLMoeForConditionalGeneration",
    fields=FIELDS + MOE_FIELDS,
    built_in=(
        ("model_type", "qwen3_vl_moe"),
        ("text_config.model_type", "qwen3_vl_moe_text"),
        ("text_config.decoder_sparse_step", 1),
        ("text_config.mlp_only_layers", []),
        ("text_config.norm_topk_prob", True),
        *BUILT_IN,
    ),
    inert=(("vision_config.model_type", "qwen3_vl_moe"), *INERT),
)
TEXT_ARCHITECTURES = {"Qwen3ForCausalLM": (), "Qwen3MoeForCausalLM": MOE_FIELDS}
"""Architecture of a text-only parent -> the fields of its config.json beyond a dense decoder's."""

FAMILIES = {family.architecture: family for family in (DENSE, MIXTURE_OF_EXPERTS)}


def family_of(model: ModelConfig) -> Family:
    """The architecture that a network is written as."""
    return MIXTURE_OF_EXPERTS if model.is_moe else DENSE


def read_config(path: Path, *, has_output_layer: bool | None = None) -> ModelConfig:
    """Read the sizes of a network from a hub-style or transformers-5 style `config.json`.

    transformers 4.57 ties the output layer where the text section says so, 5 where the top does; the hub's files say
    it in both places. A file where the text section alone says so can be of either: the weights tell.

    Args:
        path: the file.
        has_output_layer: whether the weights beside it include an output layer; None: not known, the top counts.
    Raises:
        CheckpointError: another architecture, a value that our network does not compute, a field is missing, or the
            weights are an adapter's or quantized.
    """
    config = read_config_json(path)
    found = config.get("architectures")
    if not isinstance(found, list) or len(found) != 1 or found[0] not in FAMILIES:
        raise CheckpointError(
            f"{path} describes architecture {found}",
            f"one of the Qwen3-VL architectures {', '.join(FAMILIES)}",
            "name the Qwen3-VL whose tower this decoder gets: medx convert to-megatron ... --vision-from HF"
            if found in [[name] for name in TEXT_ARCHITECTURES]
            else "convert a Qwen3-VL directory",
        )
    family = FAMILIES[found[0]]
    _in_hub_style(config)
    if has_output_layer is False and _get(config, "text_config.tie_word_embeddings"):
        config["tie_word_embeddings"] = True
    _check_built_in(config, family, path)
    model = _model_config(config, family, path)
    width = _get(config, "vision_config.out_hidden_size")
    if width != model.hidden_size:
        raise CheckpointError(
            f"{path}: vision_config.out_hidden_size is {width}, text_config.hidden_size is {model.hidden_size}",
            "mergers that end in the decoder's width",
            "mend the two values in config.json",
        )
    return model


def _in_hub_style(config: dict) -> None:
    """Turn what transformers 5 writes otherwise into the hub's fields, in place; fill in what the hub leaves out."""
    text = config.get("text_config", {})
    if "num_local_experts" in text:
        text["num_experts"] = text.pop("num_local_experts")
    text.setdefault("router_aux_loss_coef", 0.001)
    config.setdefault("tie_word_embeddings", False)
    parameters = text.pop("rope_parameters", None)
    if parameters:
        text["rope_theta"] = parameters.pop("rope_theta", text.get("rope_theta"))
        text["rope_scaling"] = parameters


def _check_built_in(config: dict, family: Family, path: Path) -> None:
    wrong = [
        f"{name} is {json.dumps(found)} instead of {json.dumps(value)}"
        for name, value in family.built_in + BUILT_IN_TRANSFORMERS_5
        if (found := _get(config, name, value)) != value
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: " + "; ".join(wrong),
            "the Qwen3-VL network that this program trains",
            "convert a Qwen3-VL directory",
        )


def _model_config(config: dict, family: Family, path: Path) -> ModelConfig:
    """Apply the table of fields to a parsed config.json."""
    missing = [name for name, _ in family.fields if _get(config, name) is None]
    if missing:
        raise CheckpointError(
            f"{path} has no {', '.join(missing)}",
            "every size of the network, stated (defaults differ between readers)",
            "add the fields to config.json",
        )
    values, vision = {}, {}
    for name, field in family.fields:
        value = _get(config, name)
        value = tuple(value) if isinstance(value, list) else value
        if field.startswith("vision."):
            vision[field.removeprefix("vision.")] = value
        else:
            values[field] = value
    return ModelConfig(**values, vision=VisionConfig(**vision))


def config_json(model: ModelConfig, dtype: torch.dtype, generation_token_ids: dict[str, int]) -> dict:
    """The hub-style `config.json` of a network.

    Args:
        model: sizes and image token ids.
        dtype: dtype of the stored weights; readers load in it.
        generation_token_ids: `bos_token_id`, `eos_token_id` of the tokenizer; empty where there is none.
    """
    family = family_of(model)
    config: dict = {"architectures": [family.architecture]}
    for name, value in family.built_in + family.inert:
        _set(config, name, value)
    for name, field in family.fields:
        owner = model.vision if field.startswith("vision.") else model
        value = getattr(owner, field.removeprefix("vision."))
        _set(config, name, list(value) if isinstance(value, tuple) else value)
    _set(config, "vision_config.out_hidden_size", model.hidden_size)
    # transformers takes the value at the top; inference servers build the decoder from the text section alone.
    _set(config, "text_config.tie_word_embeddings", model.tie_embeddings)
    # transformers 5 reads the dtype at the top, 4.57 in the text section.
    dtype_name = str(dtype).removeprefix("torch.")
    _set(config, "dtype", dtype_name)
    _set(config, "text_config.dtype", dtype_name)
    for name in ("bos_token_id", "eos_token_id"):
        if name in generation_token_ids:
            _set(config, f"text_config.{name}", generation_token_ids[name])
    config["transformers_version"] = WRITTEN_FOR_TRANSFORMERS
    return config


def generation_config_json(generation_token_ids: dict[str, int]) -> dict:
    """The `generation_config.json` of a network: where to stop and what to pad with; decoding is greedy."""
    config: dict = dict(generation_token_ids)
    if "eos_token_id" in config and "bos_token_id" in config:
        # As on the hub: the end of a turn and the end of a document both stop generation.
        config["eos_token_id"] = [config["eos_token_id"], config["bos_token_id"]]
    return {**config, "do_sample": False, "transformers_version": WRITTEN_FOR_TRANSFORMERS}


def _get(config: dict, name: str, default: object = None) -> object:
    """Value at a dotted path, or the default where any part of the path is absent."""
    for part in name.split("."):
        if not isinstance(config, dict) or config.get(part) is None:
            return default
        config = config[part]
    return config


def _set(config: dict, name: str, value: object) -> None:
    """Write a value at a dotted path, creating the sections on the way."""
    *sections, last = name.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[last] = value
