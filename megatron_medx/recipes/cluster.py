"""The published sizes on H100 nodes: network, grid and rows that the stages of a size share.

The grids (grids.py) fit 80 GB by the estimate that `medx train NAME --dry-run` prints; none was run on H100 yet. Rates
follow what published medical continued-pretraining (CPT) runs used (decoder 1e-5, tower a fifth of it). `data.path` and
the Hugging Face directory are placeholders to be overridden: `medx train pretrain_8b data.path=/corpus`.
"""

from collections.abc import Callable
from typing import NamedTuple

from megatron_medx.config.model import ModelConfig
from megatron_medx.config.run import CheckpointSection, DataSection, OptimizerSection, RunConfig, TrainingSection
from megatron_medx.recipes.grids import put_on_grid, shipped_grids
from megatron_medx.recipes.sizes import (
    qwen3_vl_2b,
    qwen3_vl_4b,
    qwen3_vl_8b,
    qwen3_vl_30b_a3b,
    qwen3_vl_32b,
    qwen3_vl_235b_a22b,
)


class ClusterSize(NamedTuple):
    """A published size."""

    published_name: str
    """As in the name of its directory on the hub."""
    model: Callable[[], ModelConfig]
    """Its network."""
    gpus: int
    """What its recipes are made for unless another number is asked for."""


CLUSTER_SIZES = {
    "2b": ClusterSize("2B", qwen3_vl_2b, 16),
    "4b": ClusterSize("4B", qwen3_vl_4b, 32),
    "8b": ClusterSize("8B", qwen3_vl_8b, 64),
    "32b": ClusterSize("32B", qwen3_vl_32b, 256),
    "30b_a3b": ClusterSize("30B-A3B", qwen3_vl_30b_a3b, 64),
    "235b_a22b": ClusterSize("235B-A22B", qwen3_vl_235b_a22b, 512),
}
"""Size, as in the recipes' names -> what it is."""


def cluster_run(size: str) -> RunConfig:
    """A published size on its own number of GPUs: rows of 8,192 tokens, 512 a step (4.2 M), 20,000 steps (84 B)."""
    name, model, gpus = CLUSTER_SIZES[size]
    config = RunConfig(
        model=model(),
        data=DataSection(
            path="data",
            packing=True,
            seq_len_tokens=8192,
            sample_align_tokens=8,  # context up to 4, and rows stay the same when it changes
            max_pixels=4_194_304,  # 4,096 tokens: the largest image leaves half a row for text
            max_bad_fraction=0.001,
            num_workers=4,
        ),
        optimizer=OptimizerSection(lr=1e-5, vision_lr=2e-6, min_lr=1e-6, warmup_tokens=500 * 512 * 8192),
        training=TrainingSection(steps=20_000, global_batch_rows=512),
        checkpoint=CheckpointSection(
            every_steps=500,
            async_save=True,
            keep_last=3,  # 14 bytes a parameter each; one damaged still leaves two
            keep_every_steps=5_000,  # for what is looked at later: averages, other decays, evaluation
            start_from=f"hf/Qwen3-VL-{name}-Instruct",
        ),
    )
    put_on_grid(config, gpus, shipped_grids(size)[gpus])
    return config
