"""Estimates of memory: numbers worked out by hand, and what is in flight held against Megatron's own schedules."""

import dataclasses
from types import SimpleNamespace

import pytest

from megatron_medx.config.memory import (
    _in_flight,
    _stage_activations,
    _stage_parameters,
    _worst_patches,
    checkpoint_bytes,
    worst_rank,
)
from megatron_medx.config.model import ModelConfig, VisionConfig
from megatron_medx.config.overrides import apply_overrides
from megatron_medx.config.parameters import parameter_counts
from megatron_medx.config.run import DataSection, ParallelSection, PrecisionSection, RunConfig, TrainingSection

SMALL = ModelConfig(
    hidden_size=8,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    ffn_hidden_size=16,
    vocab_size=32,
    vision=VisionConfig(
        hidden_size=8, num_layers=3, num_heads=2, ffn_hidden_size=16, num_position_embeddings=4, patch_size=4
    ),
    mrope_section=(2, 0, 0),
)
MOE = dataclasses.replace(SMALL, num_experts=8, experts_per_token=2, expert_ffn_hidden_size=10)


def run(*overrides: str, model: ModelConfig = SMALL, world_size: int = 1) -> RunConfig:
    config = RunConfig(
        model=dataclasses.replace(model),
        data=DataSection(packing=True, seq_len_tokens=64, min_pixels=64, max_pixels=1024, sample_align_tokens=8),
        parallel=ParallelSection(world_size=world_size),
        training=TrainingSection(global_batch_rows=16),
        precision=PrecisionSection(dtype="fp32"),
    )
    return apply_overrides(config, list(overrides))


def grid(world_size: int, **axes: int) -> list[str]:
    return [f"parallel.world_size={world_size}", *(f"parallel.{axis}={size}" for axis, size in axes.items())]


ATTENTION = 8 * 2 * 16 + 8 * 2 * 8  # query and output 8 x 16, key and value 8 x 8
NORMS = 2 * 8 + 2 * 4
LAYER = 4 * 8 + 3 * 16 + 4 * 8 + 3 * 16  # hidden, query, key and value, MLP widths
TOWER_LAYER = 10 * 8 + 2 * 16


def test_experts_are_dealt_and_their_states_sharded_over_the_rest_of_a_stage():
    """4 ranks = tensor 2 x data 2, experts over 4: two of the eight experts a rank, held by no other rank."""
    config = run(*grid(4, tensor=2, expert=4), "training.freeze=vision,merger", model=MOE)
    experts = 8 * 2 * 3 * 8 * 10
    dense = 8 * (ATTENTION // 2 + 8 * 8 + NORMS) + 8 + 2 * 32 * 8 // 2  # router whole; final norm; embedding and output
    held = _stage_parameters(config, 0)
    assert (held["experts"], held["decoder"] + held["embeddings"] + held["output"]) == (experts, dense)
    memory = worst_rank(config)
    assert memory["gradients"] == 4 * (experts + dense)
    assert memory["optimizer"] == 8 * (experts + dense // 2)
    counts = parameter_counts(MOE)
    assert memory["weights"] == 4 * (experts + dense + counts["vision"] + counts["merger"])


def test_ranks_of_a_stage_hold_all_experts_between_them():
    counts = parameter_counts(MOE)
    config = run(*grid(8, pipeline=2, expert=4), model=MOE)
    experts = sum(4 * _stage_parameters(config, stage)["experts"] for stage in (0, 1))
    decoder = sum(_stage_parameters(config, stage)["decoder"] for stage in (0, 1))
    assert experts + decoder == counts["decoder"]
    assert checkpoint_bytes(config) == (4 + 12) * sum(counts.values())


def test_context_ranks_share_states_and_tokens_but_not_weights():
    one, four = worst_rank(run()), worst_rank(run(*grid(4, context=4)))
    assert (four["weights"], four["gradients"]) == (one["weights"], one["gradients"])
    assert four["optimizer"] == one["optimizer"] // 4
    assert one["activations"] == 4 * (64 * (8 * LAYER + 32) + 256 * 3 * TOWER_LAYER)
    assert four["activations"] == int(4 * (16 * (8 * LAYER + 32) + 70.4 * 3 * TOWER_LAYER))  # 70.4 = 1.1 x 256 / 4


def test_experts_keep_what_they_are_sent():
    frozen = "training.freeze=vision,merger"
    layer = 4 * 8 + 3 * 16 + 4 * 8 + 2 * (2 * 8 + 3 * 10) + 2 * 8
    assert _stage_activations(run(frozen, model=MOE), 0) == 4 * 64 * (8 * layer + 32)


def test_full_recomputation_keeps_inputs_and_one_layer_for_decoder_and_tower_apart():
    decoder, tower = 64 * 8 * LAYER, 256 * 3 * TOWER_LAYER
    logits = 64 * 32
    full_decoder, full_tower = 64 * (8 * 8 + LAYER), 256 * (3 * 8 + TOWER_LAYER)
    assert _stage_activations(run("training.recompute=full"), 0) == 4 * (full_decoder + tower + logits)
    assert _stage_activations(run("training.recompute_vision=full"), 0) == 4 * (decoder + full_tower + logits)
    assert _stage_activations(run("training.recompute_vision=selective"), 0) == _stage_activations(run(), 0)


def test_stages_keep_their_own_layers_for_the_rows_in_flight():
    """Pipeline 4 with 5 + 1 + 1 + 1 layers: 4 rows in flight on the first stage, 1 on the last."""
    config = run(*grid(4, pipeline=4, first_stage_layers=5))
    assert _stage_activations(config, 0) == 4 * 4 * (64 * 5 * LAYER + 256 * 3 * TOWER_LAYER)
    assert _stage_activations(config, 1) == 4 * 3 * 64 * LAYER
    assert _stage_activations(config, 3) == 4 * 64 * (LAYER + 32)
    assert [_stage_parameters(config, stage)["decoder"] for stage in range(4)] == [
        5 * (ATTENTION + 3 * 8 * 16 + NORMS),
        *[ATTENTION + 3 * 8 * 16 + NORMS] * 2,
        ATTENTION + 3 * 8 * 16 + NORMS + 8,
    ]


def test_virtual_stages_keep_more_chunks_and_more_towers():
    """Pipeline 2 of 2 chunks: (2 (2 - 1) + 2 + 1) = 5 chunks of 2 layers and 4 rows' towers on the first stage."""
    config = run(*grid(2, pipeline=2, virtual_pipeline=2))
    assert _stage_activations(config, 0) == 4 * (5 * 64 * 2 * LAYER + 4 * 256 * 3 * TOWER_LAYER)
    assert _stage_activations(config, 1) == 4 * 64 * (3 * 2 * LAYER + 32)


@pytest.mark.parametrize("rows", [4, 8, 12, 20])
@pytest.mark.parametrize(("stages", "virtual"), [(2, 1), (4, 1), (2, 2), (2, 4), (4, 2), (4, 3)])
def test_what_is_in_flight_is_what_megatrons_schedule_keeps(stages, virtual, rows):
    from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches, get_schedule_table

    config = run(f"training.global_batch_rows={rows}", *grid(stages, pipeline=stages, virtual_pipeline=virtual))
    table = [chunk for _, chunk in get_schedule_table(rows, virtual, stages)]
    for stage in range(stages):
        place = SimpleNamespace(size=lambda: stages, rank=lambda stage=stage: stage)
        communicator = SimpleNamespace(
            pp_group=place, virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None
        )
        total, _, warmup, remaining = get_pp_rank_microbatches(rows, virtual, stages, p2p_communicator=communicator)
        events = [(table[k], 1) for k in range(warmup)]
        for k in range(remaining):
            events += [(table[warmup + k], 1), (virtual - 1 - table[k], -1)]
        events += [(virtual - 1 - table[k], -1) for k in range(remaining, total)]
        chunks, firsts = [0], [0]
        for chunk, change in events:
            chunks.append(chunks[-1] + change)
            firsts.append(firsts[-1] + change * (chunk == 0))
        assert chunks[-1] == firsts[-1] == 0
        assert _in_flight(config, stage)[0] == max(chunks)
        if stage == 0:
            assert _in_flight(config, stage)[1] == max(firsts)


def test_images_are_dealt_but_the_largest_stays_whole():
    assert _worst_patches(run()) == 256
    assert _worst_patches(run(*grid(2, tensor=2))) == pytest.approx(1.1 * 128)
    assert _worst_patches(run(*grid(8, tensor=2, context=4))) == 64  # 1.1 x 32 patches, but one image has 1024 / 16
    assert _worst_patches(run(*grid(8, tensor=2, context=4), "data.max_pixels=1000000")) == 256
