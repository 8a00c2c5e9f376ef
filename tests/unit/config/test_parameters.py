"""Parameter counts against transformers' own network, built without memory; shares of ranks add up."""

import dataclasses

import pytest

from megatron_medx.config.memory import PRECISIONS, checkpoint_bytes, worst_rank
from megatron_medx.config.model import ModelConfig, VisionConfig
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.parameters import parameter_counts, part_counts
from megatron_medx.recipes import get_recipe
from megatron_medx.recipes.sizes import qwen3_vl_2b, qwen3_vl_8b

ODD = ModelConfig(
    hidden_size=56,
    num_layers=3,
    num_heads=6,
    num_kv_heads=3,
    head_dim=20,
    ffn_hidden_size=77,
    vocab_size=211,
    vision=VisionConfig(
        hidden_size=48,
        num_layers=3,
        num_heads=4,
        ffn_hidden_size=100,
        deepstack_layers=(1,),
        num_position_embeddings=36,
        patch_size=4,
    ),
    mrope_section=(4, 3, 3),
)


EXPERTS = dataclasses.replace(ODD, num_experts=5, experts_per_token=2, expert_ffn_hidden_size=33)


def hf_config(model: ModelConfig):
    from transformers import Qwen3VLConfig, Qwen3VLMoeConfig

    experts = {"num_experts": model.num_experts, "moe_intermediate_size": model.expert_ffn_hidden_size}
    vision = model.vision
    rope = {"rope_type": "default", "rope_theta": model.rope_theta, "mrope_section": list(model.mrope_section)}
    return (Qwen3VLMoeConfig if model.is_moe else Qwen3VLConfig)(
        tie_word_embeddings=model.tie_embeddings,
        text_config={
            **(experts if model.is_moe else {}),
            "hidden_size": model.hidden_size,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            "num_key_value_heads": model.num_kv_heads,
            "head_dim": model.head_dim,
            "intermediate_size": model.ffn_hidden_size,
            "vocab_size": model.vocab_size,
            "rope_parameters": rope,
        },
        vision_config={
            "hidden_size": vision.hidden_size,
            "depth": vision.num_layers,
            "num_heads": vision.num_heads,
            "intermediate_size": vision.ffn_hidden_size,
            "deepstack_visual_indexes": list(vision.deepstack_layers),
            "num_position_embeddings": vision.num_position_embeddings,
            "patch_size": vision.patch_size,
            "out_hidden_size": model.hidden_size,
        },
    )


def counted_by_transformers(model: ModelConfig) -> dict[str, int]:
    import torch
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration

    with torch.device("meta"):
        of_network = Qwen3VLMoeForConditionalGeneration if model.is_moe else Qwen3VLForConditionalGeneration
        network = of_network(hf_config(model))
    counts = dict.fromkeys(("vision", "merger", "embeddings", "decoder", "output"), 0)
    for name, parameter in network.named_parameters():  # a tied weight appears once
        if ".visual." in name:
            piece = "merger" if "merger" in name else "vision"
        elif "embed_tokens" in name:
            piece = "embeddings"
        else:
            piece = "output" if "lm_head" in name else "decoder"
        counts[piece] += parameter.numel()
    return counts


@pytest.mark.parametrize(
    "model",
    [
        ODD,
        dataclasses.replace(ODD, tie_embeddings=True),
        dataclasses.replace(ODD, vision=dataclasses.replace(ODD.vision, deepstack_layers=())),
        EXPERTS,
        get_recipe("demo").model,
        get_recipe("demo_moe").model,
        qwen3_vl_2b(),
        qwen3_vl_8b(),
    ],
    ids=["untied", "tied", "no deepstack", "experts", "demo", "demo_moe", "2b", "8b"],
)
def test_counts_are_those_of_transformers(model):
    assert parameter_counts(model) == counted_by_transformers(model)


def test_parts_sum_to_the_whole():
    assert sum(part_counts(ODD).values()) == sum(parameter_counts(ODD).values())
    assert list(part_counts(ODD)) == ["vision", "merger", "language"]


def one_rank(*overrides: str):
    return apply_overrides(get_recipe("demo"), ["parallel.tensor=1", "parallel.world_size=1", *overrides])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_rank_holds_everything(precision):
    config = one_rank(f"precision.dtype={precision}")
    total, per = sum(parameter_counts(config.model).values()), PRECISIONS[precision]
    memory = worst_rank(config)
    assert memory["weights"] == per.weight * total
    assert memory["gradients"] == per.gradient * total
    assert memory["optimizer"] == per.optimizer * total


def test_frozen_parts_have_no_gradients_and_no_states():
    config = one_rank("training.freeze=vision,merger")
    language = part_counts(config.model)["language"]
    assert worst_rank(config)["gradients"] == 4 * language
    assert checkpoint_bytes(config) == 4 * sum(part_counts(config.model).values()) + 12 * language
    kept = [worst_rank(one)["vision activations"] for one in (config, one_rank("training.freeze=vision"), one_rank())]
    assert kept[0] == 0 < kept[1] < kept[2]


def test_sharding_divides_what_it_shards():
    config, whole = one_rank("parallel.world_size=4"), one_rank()
    assert worst_rank(config)["optimizer"] == worst_rank(whole)["optimizer"] // 4
    assert worst_rank(config)["weights"] == worst_rank(whole)["weights"]
    tensor = one_rank("parallel.world_size=2", "parallel.tensor=2")
    assert worst_rank(tensor)["weights"] < worst_rank(whole)["weights"]
    kind = "decoder activations"
    assert worst_rank(one_rank("training.recompute=full"))[kind] < worst_rank(whole)[kind]


def test_pipeline_stages_hold_every_parameter_once_and_tied_embeddings_twice():
    from megatron_medx.config.memory import stage_parameters

    for tied in ("true", "false"):
        config = one_rank("parallel.pipeline=2", "parallel.world_size=2", f"model.tie_embeddings={tied}")
        held = sum(sum(stage_parameters(config, stage).values()) for stage in (0, 1))
        counts = parameter_counts(config.model)
        assert held == sum(counts.values()) + (counts["embeddings"] if tied == "true" else 0)
