"""Estimates of memory: numbers worked out by hand, and what is in flight held against Megatron's own schedules.

Activations in fp32 are those of plain torch, which test_memory_counts.py holds against real tensors; here it is about
what becomes of them on a grid.
"""

import dataclasses
import time
from types import SimpleNamespace

import pytest

from megatron_medx.config.activations import row_load
from megatron_medx.config.memory import (
    checkpoint_bytes,
    in_flight,
    stage_memory,
    stage_parameters,
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
TURNS = 2 * 4  # rotary cosines and sines, of decoder heads as of tower heads
KEPT_ATTENTION = 2 * 8 + 5 * 16 + 3 * 8 + (1 + 2 * 4 + 2)  # hidden, query and key widths, statistics
LAYER = KEPT_ATTENTION + 2 * 8 + 3 * 16 + 1
FINAL_NORM = 2 * 8 + 1
IDS, IMAGE_TOKEN = 2, 8 + 4  # an int64; features, two int64 indices
STEM, MERGER = 3 * 2 * 4 * 4 + 12, (4 * 32 + 2 * 4) // 4  # for each patch
TOWER_LAYER = 11 * 8 + 2 * 16 + 4 + 2
TOWER = STEM + TURNS + 3 * TOWER_LAYER + MERGER


def activations(config: RunConfig, stage: int = 0) -> tuple[int, int]:
    kinds = stage_memory(config, stage)
    return kinds["vision activations"], kinds["decoder activations"]


def test_kinds_and_the_worst_stage():
    config = run(*grid(4, pipeline=4, first_stage_layers=5))
    stages = [stage_memory(config, stage) for stage in range(4)]
    kinds = ["weights", "gradients", "optimizer", "vision activations", "decoder activations", "logits"]
    assert all(list(stage) == [*kinds, "communication"] for stage in stages)
    assert worst_rank(config) == stages[0]
    last = run(*grid(4, pipeline=4, last_stage_layers=5), "training.freeze=vision,merger", "model.vocab_size=4096")
    assert worst_rank(last) == stage_memory(last, 3)
    assert [bool(stage["vision activations"]) for stage in stages] == [True, False, False, False]
    assert [bool(stage["logits"]) for stage in stages] == [False, False, False, True]


def test_experts_are_dealt_and_their_states_sharded_over_the_rest_of_a_stage():
    """4 ranks = tensor 2 x data 2, experts over 4: two of the eight experts a rank, held by no other rank."""
    config = run(*grid(4, tensor=2, expert=4), "training.freeze=vision,merger", model=MOE)
    experts = 8 * 2 * 3 * 8 * 10
    dense = 8 * (ATTENTION // 2 + 8 * 8 + NORMS) + 8 + 2 * 32 * 8 // 2  # router whole; final norm; embedding and output
    held = stage_parameters(config, 0)
    assert (held["experts"], held["decoder"] + held["embeddings"] + held["output"]) == (experts, dense)
    memory = worst_rank(config)
    assert memory["gradients"] == 4 * (experts + dense)
    assert memory["optimizer"] == 8 * (experts + dense // 2)
    counts = parameter_counts(MOE)
    assert memory["weights"] == 4 * (experts + dense + counts["vision"] + counts["merger"])


def test_ranks_of_a_stage_hold_all_experts_between_them():
    counts = parameter_counts(MOE)
    config = run(*grid(8, pipeline=2, expert=4), model=MOE)
    experts = sum(4 * stage_parameters(config, stage)["experts"] for stage in (0, 1))
    decoder = sum(stage_parameters(config, stage)["decoder"] for stage in (0, 1))
    assert experts + decoder == counts["decoder"]
    assert checkpoint_bytes(config) == (4 + 12) * sum(counts.values())


def test_context_ranks_share_states_and_tokens_but_not_weights():
    one, four = worst_rank(run()), worst_rank(run(*grid(4, context=4)))
    assert (four["weights"], four["gradients"]) == (one["weights"], one["gradients"])
    assert four["optimizer"] == one["optimizer"] // 4
    decoder = 8 * LAYER + TURNS + FINAL_NORM + IDS + IMAGE_TOKEN
    assert (one["vision activations"], one["decoder activations"]) == (4 * 256 * TOWER, 4 * 64 * decoder)
    assert four["vision activations"] == int(4 * 70.4 * TOWER)  # 1.1 x 256 / 4
    assert four["decoder activations"] == one["decoder activations"] // 4
    assert one["communication"] == 0
    assert four["communication"] == 4 * (64 * 2 * 8 + int(4 * 70.4 / 4 * 8))  # keys and values, image features


def test_tensor_ranks_share_all_but_token_ids_and_rotary_turns():
    one, two = worst_rank(run()), worst_rank(run(*grid(2, tensor=2)))
    not_shared = 4 * 64 * (TURNS + IDS)
    assert 2 * two["decoder activations"] == one["decoder activations"] + not_shared
    assert two["communication"] == 4 * (3 * 64 * 8 + int(2 * 140.8 / 4 * 8))  # 140.8 = 1.1 x 256 / 2


def test_experts_keep_what_they_are_sent():
    frozen = "training.freeze=vision,merger"
    experts = 2 * 8 + 1 + 2 * (8 + 4 * 10) + 6 * 2 + 2 * 8
    balance = 2 * 2 + 8
    layer = KEPT_ATTENTION + experts
    rest = TURNS + FINAL_NORM + IDS
    assert activations(run(frozen, model=MOE)) == (0, 4 * 64 * (8 * (layer + balance) + rest))
    assert activations(run(frozen, "model.router_aux_loss_coef=0", model=MOE)) == (0, 4 * 64 * (8 * layer + rest))
    shared = stage_memory(run(frozen, *grid(2, expert=2), model=MOE), 0)
    assert shared["communication"] == 4 * 2 * 2 * 64 * 8  # sent and received, two experts a token


def test_full_recomputation_keeps_inputs_and_one_layer_for_decoder_and_tower_apart():
    vision, decoder = activations(run())
    rest = FINAL_NORM + IDS + IMAGE_TOKEN
    full = (vision, 4 * 64 * (8 * 8 + TURNS + LAYER + rest))
    assert activations(run("training.recompute=full")) == full
    tower = 4 * 256 * (STEM + 3 * 8 + TURNS + TOWER_LAYER + MERGER)
    assert activations(run("training.recompute_vision=full")) == (tower, decoder)


def test_deepstack_levels_are_there_for_one_row_or_kept_for_all():
    """Two levels on the first of two stages, two rows in flight."""
    config = ("model.vision.deepstack_layers=0,1", *grid(2, pipeline=2))
    per_token = 4 * LAYER + TURNS + IDS + 3 * 8 + 4
    assert activations(run(*config))[1] == 4 * 64 * (2 * per_token + 2 * 8)
    recomputed = 4 * 8 + TURNS + IDS + 3 * 8 + 4 + 2 * 8
    assert activations(run(*config, "training.recompute=full"))[1] == 4 * 64 * (2 * recomputed + LAYER)


def test_stages_keep_their_own_layers_for_the_rows_in_flight():
    """Pipeline 4 with 5 + 1 + 1 + 1 layers: 4 rows in flight on the first stage, 1 on the last."""
    config = run(*grid(4, pipeline=4, first_stage_layers=5))
    assert activations(config, 0) == (4 * 4 * 256 * TOWER, 4 * 4 * 64 * (5 * LAYER + TURNS + IDS + IMAGE_TOKEN))
    assert activations(config, 1) == (0, 4 * 3 * 64 * (LAYER + TURNS))
    assert activations(config, 3) == (0, 4 * 64 * (LAYER + TURNS + FINAL_NORM))
    assert [stage_memory(config, stage)["communication"] for stage in range(4)] == [
        4 * 2 * n * 64 * 8 for n in (1, 2, 2, 1)
    ]
    assert [stage_parameters(config, stage)["decoder"] for stage in range(4)] == [
        5 * (ATTENTION + 3 * 8 * 16 + NORMS),
        *[ATTENTION + 3 * 8 * 16 + NORMS] * 2,
        ATTENTION + 3 * 8 * 16 + NORMS + 8,
    ]


def test_virtual_stages_keep_more_chunks_and_more_towers():
    """Pipeline 2 of 2 chunks: (2 (2 - 1) + 2 + 1) = 5 chunks of 2 layers and 4 rows' towers on the first stage."""
    config = run(*grid(2, pipeline=2, virtual_pipeline=2))
    assert activations(config, 0) == (4 * 4 * 256 * TOWER, 4 * 64 * (5 * (2 * LAYER + TURNS) + 4 * (IDS + IMAGE_TOKEN)))
    assert activations(config, 1) == (0, 4 * 64 * (3 * (2 * LAYER + TURNS) + FINAL_NORM))


def test_logits_at_the_loss_or_beside_the_gradient_of_their_weight():
    """64 tokens, vocabulary 32, hidden 8."""
    assert worst_rank(run())["logits"] == 4 * (64 + 8) * 32
    assert worst_rank(run("training.freeze=language"))["logits"] == 4 * 64 * 32
    bf16 = ("precision.dtype=bf16", "data.sample_align_tokens=32")
    assert worst_rank(run(*bf16))["logits"] == 6 * 64 * 32
    assert worst_rank(run(*bf16, *grid(16, context=16)))["logits"] == 6 * 4 * 32
    wide = ("model.hidden_size=16", *bf16, *grid(16, context=16))
    assert worst_rank(run(*wide))["logits"] == 2 * (4 + 16) * 32


def test_layers_of_transformer_engine():
    """bf16: 2 bytes a value, 4 a statistic."""
    attention = 2 * (2 * 8 + 3 * 16 + 3 * 8) + 4 * (1 + 2 * 4 + 2)
    layer = attention + 2 * (2 * 8 + 3 * 16) + 4
    rest = 2 * TURNS + 2 * 2 * 8 + 4 + 4 * IDS + 2 * 8 + 16
    tower = 2 * (8 * 8 + 2 * 16) + 4 * (4 + 2)
    stem, merger = 2 * 96 + 4 * 12 + 2 * TURNS, 2 * 32 + 8
    config = run("precision.dtype=bf16")
    assert activations(config) == (256 * (stem + 3 * tower + merger), 64 * (8 * layer + rest))
    selective = run("precision.dtype=bf16", "training.recompute=selective")
    assert activations(selective)[1] == 64 * (8 * (layer + 2 * (16 + 8) - 4 * 4) + rest)
    experts = 2 * (2 * 8 + 2 * (8 + 3 * 10)) + 4 * (1 + 5 * 2 + 2 * 8) + 4 * (2 * 2 + 8)
    assert activations(run("precision.dtype=bf16", model=MOE))[1] == 64 * (8 * (attention + experts) + rest)


@pytest.mark.parametrize(
    ("recipe", "byte", "copy"), [("delayed", 1, 16), ("tensorwise", 1, 0), ("blockwise", 1.03125, 0)]
)
def test_fp8_keeps_narrower_inputs_and_copies_of_weights(recipe, byte, copy):
    """Layers 1 to 5 of 8 in FP8: their two normalized inputs and the MLP's second input shrink from 2 bytes a value."""
    bf16 = run("precision.dtype=bf16")
    fp8 = (
        "precision.dtype=bf16",
        f"precision.fp8={recipe}",
        "precision.bf16_first_layers=1",
        "precision.bf16_last_layers=2",
    )
    saved = int(64 * 5 * ((2 - byte) * (2 * 8 + 16) - copy))
    before, after = stage_memory(bf16, 0), stage_memory(run(*fp8), 0)
    assert before["decoder activations"] - after["decoder activations"] == saved
    copies = 2 * 5 * (ATTENTION + 3 * 8 * 16)
    assert after["weights"] - before["weights"] == pytest.approx(copies, rel=0.001)
    tower = stage_memory(run(*fp8, "precision.fp8_vision=true"), 0)
    assert tower["weights"] - after["weights"] == pytest.approx(2 * 3 * 8 * (4 * 8 + 2 * 16), rel=0.001)
    assert tower["vision activations"] < after["vision activations"]


def test_layers_in_fp8_are_counted_on_the_stage_and_chunk_that_has_them():
    """Pipeline 2 of 2 chunks of 2 layers: stage 0 has layers 0 1 4 5, stage 1 has 2 3 6 7; FP8 from 1 to 4."""
    config = run(
        "precision.dtype=bf16",
        "precision.fp8=tensorwise",
        "precision.bf16_first_layers=1",
        "precision.bf16_last_layers=3",
        *grid(2, pipeline=2, virtual_pipeline=2),
    )
    plain = run("precision.dtype=bf16", *grid(2, pipeline=2, virtual_pipeline=2))
    copies = [stage_memory(config, stage)["weights"] - stage_memory(plain, stage)["weights"] for stage in (0, 1)]
    assert copies == [2 * 2 * (ATTENTION + 3 * 8 * 16)] * 2


def test_a_search_may_ask_often():
    config = run("model.num_layers=64", "precision.dtype=bf16", *grid(16, pipeline=16))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        worst_rank(config)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3


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
        assert in_flight(config, stage)[0] == max(chunks)
        if stage == 0:
            assert in_flight(config, stage)[1] == max(firsts)


def test_images_are_dealt_but_the_largest_stays_whole():
    def worst(*overrides: str, patches: int | None = None) -> float:
        return row_load(run(*overrides), patches).patches

    assert worst() == 256
    assert worst(*grid(2, tensor=2)) == pytest.approx(1.1 * 128)
    assert worst(*grid(8, tensor=2, context=4)) == 64  # 1.1 x 32 patches, but one image has 1024 / 16
    assert worst(*grid(8, tensor=2, context=4), "data.max_pixels=1000000") == 256
    assert worst("data.max_row_patches=100") == 100
    assert worst(*grid(2, tensor=2), patches=160) == pytest.approx(88)


def test_fewer_images_take_less():
    full, few = stage_memory(run(), 0), stage_memory(run(), 0, row_patches=64)
    assert few["vision activations"] == full["vision activations"] // 4
    assert full["decoder activations"] - few["decoder activations"] == 4 * (64 - 16) * IMAGE_TOKEN
    assert worst_rank(run(), 64) == few
