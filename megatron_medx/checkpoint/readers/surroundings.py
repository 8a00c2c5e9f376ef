"""What other programs expect between values and beside the weights; read as `tables.py` was."""

import math

from megatron_medx.checkpoint.readers.expectations import File, Relation, Token, at

_BRIDGE = "qwen_vl/qwen3_vl_bridge.py"
_DEPTH = "vision_config.depth"
_PREPROCESSOR = "preprocessor_config.json"
_VERL_TOKENIZER = "verl/utils/tokenizer/tokenizer.py"
_VLLM_PROCESSOR = "transformers_utils/processor.py:103"
_SGLANG_PROCESSOR = "multimodal/processors/qwen_vl.py"

RELATIONS = (
    Relation(
        "M-RoPE sections that sum to half a head",
        lambda value: 2 * sum(value("text_config.rope_scaling.mrope_section")) == value("text_config.head_dim"),
        ("text_config.rope_scaling.mrope_section", "text_config.head_dim"),
        at("layers/rotary_embedding/mrope.py:364", "layers/rotary_embedding/mrope.py:83", ""),
    ),
    Relation(
        "mergers that end in the decoder's width",
        lambda value: value("vision_config.out_hidden_size") == value("text_config.hidden_size"),
        ("vision_config.out_hidden_size", "text_config.hidden_size"),
        at("qwen3_vl.py:2034", "qwen3_vl.py:1419", ""),
    ),
    Relation(
        "a square number of learned positions",
        lambda value: (
            math.isqrt(value("vision_config.num_position_embeddings")) ** 2
            == value("vision_config.num_position_embeddings")
        ),
        ("vision_config.num_position_embeddings",),
        at("qwen3_vl.py:591", "qwen3_vl.py:381", "qwen_vl/modelling_qwen3_vl/vision_model.py:146"),
    ),
    Relation(
        "DeepStack layers of the tower in ascending order, each once",
        lambda value: (
            value("vision_config.deepstack_visual_indexes")
            == sorted(
                {layer for layer in value("vision_config.deepstack_visual_indexes") if 0 <= layer < value(_DEPTH)}
            )
        ),
        ("vision_config.deepstack_visual_indexes", _DEPTH),
        at("qwen3_vl.py:895", "qwen3_vl.py:1039", "qwen_vl/modelling_qwen3_vl/transformer_block.py:150"),
    ),
    Relation(
        "no more DeepStack levels than decoder layers",
        lambda value: len(value("vision_config.deepstack_visual_indexes")) <= value("text_config.num_hidden_layers"),
        ("vision_config.deepstack_visual_indexes", "text_config.num_hidden_layers"),
        at("", "", "qwen_vl/modelling_qwen3_vl/model.py:360"),
    ),
    Relation(
        "3 DeepStack levels, or none: the number is fixed there for mixtures of experts",
        lambda value: len(value("vision_config.deepstack_visual_indexes")) in (0, 3),
        ("vision_config.deepstack_visual_indexes",),
        at("", "qwen3_vl_moe.py:63", ""),
        moe=True,
        do="serve it with another program, or train a network with 3 DeepStack layers",
    ),
    Relation(
        "an expert width that is neither the hidden size nor half of it: the layout is told by the sides",
        lambda value: (
            value("text_config.hidden_size")
            not in (value("text_config.moe_intermediate_size"), 2 * value("text_config.moe_intermediate_size"))
        ),
        ("text_config.hidden_size", "text_config.moe_intermediate_size"),
        at("", "", "conversion/param_mapping.py:1151"),
        moe=True,
        do="train a network with another expert width",
    ),
    *(
        Relation(
            f"one {ours.rpartition('.')[2]} for the pictures' patches and for the network",
            lambda value, ours=ours, theirs=f"{_PREPROCESSOR}:{theirs}": value(ours) == value(theirs),
            (ours, f"{_PREPROCESSOR}:{theirs}"),
            at(vllm, sglang, ""),
            do="copy the processor that the network was trained with",
        )
        for ours, theirs, vllm, sglang in (
            ("vision_config.patch_size", "patch_size", "qwen3_vl.py:974", ""),
            ("vision_config.spatial_merge_size", "merge_size", "qwen3_vl.py:975", f"{_SGLANG_PROCESSOR}:391"),
            ("vision_config.temporal_patch_size", "temporal_patch_size", "qwen3_vl.py:976", ""),
        )
    ),
)
"""What must hold between values."""

FILES = (
    File(("tokenizer.json",), at(_VLLM_PROCESSOR, f"{_SGLANG_PROCESSOR}:378", f"{_VERL_TOKENIZER}:176")),
    File(("tokenizer_config.json",), at(_VLLM_PROCESSOR, f"{_SGLANG_PROCESSOR}:378", f"{_VERL_TOKENIZER}:176")),
    File(
        ("chat_template.jinja", "chat_template.json"),
        at(_VLLM_PROCESSOR, "utils/hf_transformers/processor.py:420", f"{_VERL_TOKENIZER}:196"),
        otherwise="refuses conversations",
    ),
    File(
        ("preprocessor_config.json", "processor_config.json"),
        at(_VLLM_PROCESSOR, f"{_SGLANG_PROCESSOR}:378", f"{_VERL_TOKENIZER}:196"),
    ),
    File(("preprocessor_config.json",), {"transformers4": "image_processing_base.py:295"}),
    File(
        ("preprocessor_config.json",),
        {"llamacpp": "conversion/qwen3vl.py:27"},
        otherwise="takes CLIP's mean and deviation of colors: wrong answers and no error,",
    ),
    File(
        ("video_preprocessor_config.json",),
        {"transformers4": "video_processing_utils.py:678"},
        otherwise="reads videos with the settings of images",
    ),
    File(
        ("generation_config.json",),
        at("config/model.py:1825", "configs/model_config.py:683", "verl/utils/model.py:105"),
        otherwise="stops at one of the two ending tokens alone",
    ),
)
"""Files beside the weights. Readers of today take what transformers 5 writes (processor_config.json) as well."""

TOKENS = (
    Token("<|image_pad|>", "image_token_id", at("qwen3_vl.py:2995", f"{_SGLANG_PROCESSOR}:382", f"{_BRIDGE}:104")),
    Token("<|video_pad|>", "video_token_id", at("qwen3_vl.py:1489", f"{_SGLANG_PROCESSOR}:383", f"{_BRIDGE}:105")),
    Token(
        "<|vision_start|>", "vision_start_token_id",
        at("qwen3_vl.py:1487", f"{_SGLANG_PROCESSOR}:385", f"{_BRIDGE}:102"),
    ),
    Token(
        "<|vision_end|>", "vision_end_token_id",
        at("qwen3_vl.py:1488", f"{_SGLANG_PROCESSOR}:381", f"{_BRIDGE}:103"),
    ),
)  # fmt: skip
"""Tokens that config.json and tokenizer.json must agree about; without the key, readers take Qwen's own numbers."""
