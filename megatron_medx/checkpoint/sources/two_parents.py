"""Two parents of one network: a text-only Qwen3 decoder, and the tower and mergers of a Qwen3-VL.

Both stay files. Opened together they look like one Hugging Face directory of a Qwen3-VL, with the keys and the layout
of the hub's own: the decoder's keys get the prefix that they have there, and the experts of a layer, which text-only
directories store one by one, are stacked.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch

from megatron_medx.checkpoint.hugging_face.hf_config import BUILT_IN, FIELDS, MIXTURE_OF_EXPERTS, TEXT_ARCHITECTURES
from megatron_medx.checkpoint.hugging_face.hf_directory import OUTPUT, HfDirectory, is_transposed
from megatron_medx.checkpoint.hugging_face.hf_files import open_weight_files, read_config_json, without_repeated_output
from megatron_medx.checkpoint.layout.rules import DECODER_RULES, bindings, check_total, hf_shapes
from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.config.checkpoint_folders import CONFIG_FILE
from megatron_medx.config.model import ModelConfig
from megatron_medx.errors import CheckpointError

_SECTION = "text_config."
_VISUAL = "model.visual."
_TEXT_EMBEDDING = "model.embed_tokens.weight"
_GATE_UP, _DOWN = ".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"

Shape = tuple[int, ...]


class TwoParents:
    """A text-only Qwen3 directory and a Qwen3-VL directory, opened as one network.

    Attributes:
        folder: the text-only directory.
        processor_folder: the Qwen3-VL directory: its template and preprocessor files know of images.
        model: sizes: decoder, vocabulary and rotary base of the first; tower, mergers, M-RoPE sections and image
            token ids of the second.
        specs: key -> shape and dtype, as a Qwen3-VL directory in the hub's layout would hold them.
    Raises:
        CheckpointError: either cannot be read whole, or they do not fit: widths, head size, layers, vocabulary.
    """

    def __init__(self, language: Path, vision: Path):
        self.folder, self.processor_folder = language, vision
        self._vision = HfDirectory(vision)
        self.model = _joined_model(_text_config(language / CONFIG_FILE), language, self._vision)
        _check_tokenizers(language, vision)
        self._files = without_repeated_output(
            open_weight_files(language),
            output=OUTPUT,
            embedding=_TEXT_EMBEDDING,
            is_tied=self.model.tie_embeddings,
            folder=language,
        )
        shapes = hf_shapes(bindings(self.model, DECODER_RULES))
        self._keys = {key: self._stored_keys(key, shape) for key, shape in shapes.items()}
        expected = {stored: shape for parts in self._keys.values() for stored, shape in parts.items()}
        check_total(expected, {key: file.specs[key] for key, file in self._files.items()}, str(language))
        visual = {key: spec for key, spec in self._vision.specs.items() if key.startswith(_VISUAL)}
        self.specs = {key: TensorSpec(shape, self._dtype(key)) for key, shape in shapes.items()} | visual

    def read(self, key: str) -> torch.Tensor:
        """Return one tensor, in the hub's layout of a Qwen3-VL directory."""
        if key.startswith(_VISUAL):
            return self._vision.read(key)
        parts = [self._files[stored].read(stored) for stored in self._keys[key]]
        spec = self.specs[key]
        if parts[0].dim() == len(spec.shape):  # stacked experts may lie as transformers 5 holds them in memory
            return parts[0] if parts[0].shape == spec.shape else parts[0].transpose(1, 2).contiguous()
        stacked = torch.empty(spec.shape, dtype=spec.dtype)
        num_joined = len(parts) // len(stacked)  # gate and up of one expert side by side; down alone
        width = spec.shape[2] // num_joined
        for number, part in enumerate(parts):
            expert, place = divmod(number, num_joined)
            stacked[expert, :, place * width : (place + 1) * width] = part.T
        return stacked

    def _stored_keys(self, key: str, shape: Shape) -> dict[str, Shape]:
        """The text-only directory's tensors, with their shapes, that one tensor of a Qwen3-VL directory is made of.

        Example: two experts' `...experts.gate_up_proj` is 0.gate, 0.up, 1.gate, 1.up: linear layers' matrices [I, H].
        Directories that stack a layer's experts already have one tensor for it, in either layout.
        """
        stored = key.replace("model.language_model.", "model.", 1)
        ending = next((one for one in (_GATE_UP, _DOWN) if stored.endswith(one)), None)
        if ending is None:
            return {stored: shape}
        if stored in self._files:
            is_linear = is_transposed(stored, self._files[stored].specs[stored], self.model.hidden_size)
            return {stored: (shape[0], shape[2], shape[1]) if is_linear else shape}
        names = ("gate", "up") if ending == _GATE_UP else ("down",)
        experts = stored.rpartition(".")[0]
        part = (shape[2] // len(names), shape[1])
        numbers = range(self.model.num_experts)
        return {f"{experts}.{expert}.{name}_proj.weight": part for expert in numbers for name in names}

    def _dtype(self, key: str) -> torch.dtype:
        dtypes = {stored: self._files[stored].specs[stored].dtype for stored in self._keys[key]}
        first, dtype = next(iter(dtypes.items()))
        other = next((stored for stored in dtypes if dtypes[stored] != dtype), None)
        if other is not None:
            raise CheckpointError(
                f"{self.folder}: {first} is {dtype}, {other} is {dtypes[other]}",
                "one dtype for all experts of a layer, which are stored as one tensor",
                "save the directory again in one dtype",
            )
        return dtype


def _text_config(path: Path) -> dict[str, object]:
    """The decoder's fields of ModelConfig, from the config.json of a text-only Qwen3, in either style.

    Raises:
        CheckpointError: another architecture, a value that our decoder does not compute, or a field is missing.
    """
    config = read_config_json(path)
    found = config.get("architectures")
    if not isinstance(found, list) or len(found) != 1 or found[0] not in TEXT_ARCHITECTURES:
        raise CheckpointError(
            f"{path} describes architecture {found}",
            f"one of the text-only architectures {', '.join(TEXT_ARCHITECTURES)}",
            "name a text-only Qwen3 directory, or leave --vision-from out for a whole Qwen3-VL",
        )
    moe_fields = TEXT_ARCHITECTURES[found[0]]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    config.setdefault("rope_theta", rope.get("rope_theta"))
    config.setdefault("num_experts", config.get("num_local_experts"))
    config["rope_type"] = rope.get("rope_type", "default")
    _check_computed(config, bool(moe_fields), path)
    names = [
        (name.removeprefix(_SECTION), field)
        for name, field in FIELDS + moe_fields
        if (name.startswith(_SECTION) and field != "mrope_section") or field == "tie_embeddings"
    ]
    missing = [name for name, _ in names if config.get(name) is None]
    if missing:
        raise CheckpointError(
            f"{path} has no {', '.join(missing)}",
            "every size of the decoder, stated (defaults differ between readers)",
            "add the fields to config.json",
        )
    return {field: config[name] for name, field in names}


def _check_computed(config: dict, is_moe: bool, path: Path) -> None:
    """Refuse a decoder that computes something else than ours: what the Qwen3-VL decoder has built in, and windows."""
    table = MIXTURE_OF_EXPERTS.built_in if is_moe else BUILT_IN
    built_in = {name.rpartition(".")[2]: value for name, value in table if name.startswith(_SECTION)}
    for name in ("model_type", "mrope_interleaved"):
        built_in.pop(name, None)
    wrong = [
        f"{name} is {json.dumps(config[name])} instead of {json.dumps(value)}"
        for name, value in {**built_in, "use_sliding_window": False}.items()
        if config.get(name, value) != value
    ]
    wrong += [f"layer_types names {kind}" for kind in sorted({*(config.get("layer_types") or ())} - {"full_attention"})]
    if is_moe and config.get("norm_topk_prob") is None:  # readers of a text-only Qwen3 take false for it then
        wrong.append("norm_topk_prob is absent instead of true")
    if wrong:
        raise CheckpointError(
            f"{path}: " + "; ".join(wrong),
            "the decoder that a Qwen3-VL has",
            "name another text-only Qwen3 directory",
        )


def _joined_model(text: dict[str, object], language: Path, vision: HfDirectory) -> ModelConfig:
    """Sizes of the child, after the check that the two parents fit each other."""
    other = vision.model
    experts = {"num_experts": 0, "experts_per_token": 0, "expert_ffn_hidden_size": 0}
    model = replace(other, **{**experts, **text})
    rotary, last_id = 2 * sum(other.mrope_section), max(other.image_token_id, other.video_token_id)
    checks = (
        (
            model.hidden_size == other.hidden_size,
            f"a decoder {model.hidden_size} wide, mergers that end in {other.hidden_size}",
            "mergers that end in the decoder's width",
            f"name a Qwen3-VL whose decoder is {model.hidden_size} wide as --vision-from",
        ),
        (
            model.head_dim == rotary,
            f"heads of {model.head_dim}, M-RoPE sections {list(other.mrope_section)} for heads of {rotary}",
            "one head size",
            "name a Qwen3-VL with heads of the same size as --vision-from",
        ),
        (
            len(other.vision.deepstack_layers) <= model.num_layers,
            f"{model.num_layers} decoder layers, {len(other.vision.deepstack_layers)} DeepStack mergers",
            "a decoder layer for each DeepStack merger",
            "name a deeper decoder",
        ),
        (
            last_id < model.vocab_size,
            f"a vocabulary of {model.vocab_size} tokens, image and video tokens up to id {last_id}",
            "a vocabulary that has the image tokens",
            "name a decoder of the Qwen3 series, whose vocabulary holds them",
        ),
    )
    for fits, found, needed, do in checks:
        if not fits:
            raise CheckpointError(f"{language} and {vision.folder}: {found}", needed, do)
    return model


def _check_tokenizers(language: Path, vision: Path) -> None:
    """Every token of the decoder's parent must have the same id in the tokenizer that travels with the child."""
    paths = [folder / "tokenizer.json" for folder in (language, vision)]
    if not all(path.is_file() for path in paths):
        return  # weights alone; whoever trains with them names the processor
    first, second = map(_token_ids, paths)
    wrong = [
        f"{token!r} is {number} and {second.get(token)}"
        for token, number in first.items()
        if second.get(token) != number
    ]
    if wrong:
        raise CheckpointError(
            f"the tokenizers of {language} and {vision} give {len(wrong)} tokens other ids: {', '.join(wrong[:8])}",
            "one vocabulary: the embedding's rows belong to the first, the processor comes from the second",
            "name parents of one Qwen series",
        )


def _token_ids(path: Path) -> dict[str, int]:
    content = json.loads(path.read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    return {**content.get("model", {}).get("vocab", {}), **added}
