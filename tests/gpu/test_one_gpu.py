"""What only a GPU can show; skipped without one. Written on a machine that has none: not yet run (2026-11-22)."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu

TOLERANCE = 2e-2
"""Of mean losses around 8 nats in bf16, whose steps are 2^-8 of a value; the first run must replace it."""


@pytest.fixture(scope="module")
def alone():
    """Megatron's groups of one rank over NCCL."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megatron_medx.parallel.groups import start_alone

    yield start_alone()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def mean_loss(groups, demo, recipe: str, use_transformer_engine: bool) -> float:
    """The recipe's network in bf16 on the demo's first row, with the seeded weights."""
    import torch

    from megatron_medx.data.rows import build_row_dataset
    from megatron_medx.models.initial_weights import set_initial_weights
    from megatron_medx.models.megatron_config import decoder_config
    from megatron_medx.models.qwen3_vl import Qwen3VLModel
    from megatron_medx.models.specs import layer_specs
    from megatron_medx.parallel.groups import solo_groups
    from megatron_medx.recipes import get_recipe
    from megatron_medx.training.step import to_device

    run = get_recipe(recipe)
    run.data.path = str(demo)
    grouped = run.model.is_moe and use_transformer_engine
    config = decoder_config(run.model, bf16=True, params_dtype=torch.bfloat16, moe_grouped_gemm=grouped)
    network = Qwen3VLModel(run.model, config, layer_specs(run.model, use_transformer_engine), groups, solo_groups())
    set_initial_weights(network, run.run.seed)
    row = to_device(build_row_dataset(run)[0])
    losses_1S = network.cuda()(
        row.tokens_1S, row.positions_3S, row.cu_seqlens, row.pixels_PC, row.grids_I3, row.vision_index_M, row.labels_1S
    )
    return ((losses_1S * row.loss_weights_1S).sum() / row.loss_weights_1S.sum()).item()


@pytest.mark.parametrize("recipe", ["demo", "demo_moe"])
def test_transformer_engine_layers_give_the_losses_of_the_plain_ones(recipe, alone, demo):
    """Same names in the checkpoint, so the same seeded weights; then the same loss, of experts in turn or grouped."""
    pytest.importorskip("transformer_engine.pytorch")
    plain, fused = (mean_loss(alone, demo, recipe, use) for use in (False, True))
    assert abs(plain - fused) < TOLERANCE, f"plain {plain}, Transformer Engine {fused}"


def test_the_demo_trains_in_bf16_over_nccl(demo, tmp_path):
    """`medx train` on one GPU: the CPU backend stays off and the loss falls."""
    overrides = ["training.steps=12", "precision.dtype=bf16", "parallel.tensor=1", f"data.path={demo}"]
    words = ["train", "demo", *overrides, f"run.folder={tmp_path}/run", "--nproc", "1"]
    done = subprocess.run([sys.executable, "-m", "megatron_medx.cli", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CPU backend" not in done.stdout
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5, losses
