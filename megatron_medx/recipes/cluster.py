"""The published sizes on H100 nodes: network, grid and rows that the stages of a size share.

The grids fit 80 GB by the estimate that `medx train NAME --dry-run` prints; none was run on H100 yet. Rates follow what
published medical continued-pretraining (CPT) runs used (decoder 1e-5, tower a fifth of it). `data.path` and the
Hugging Face directory are placeholders to be overridden: `medx train pretrain_8b data.path=/corpus`.
"""

from megatron_medx.config.model import ModelConfig
from megatron_medx.config.run import (
    CheckpointSection,
    DataSection,
    OptimizerSection,
    ParallelSection,
    RunConfig,
    TrainingSection,
)
from megatron_medx.recipes.sizes import qwen3_vl_2b, qwen3_vl_4b, qwen3_vl_8b, qwen3_vl_32b


def cluster_2b() -> RunConfig:
    """Qwen3-VL-2B on 16 GPUs."""
    return _cluster("2B", qwen3_vl_2b(), ParallelSection(world_size=16))


def cluster_4b() -> RunConfig:
    """Qwen3-VL-4B on 32 GPUs."""
    return _cluster("4B", qwen3_vl_4b(), ParallelSection(world_size=32, tensor=2))


def cluster_8b() -> RunConfig:
    """Qwen3-VL-8B on 64 GPUs."""
    return _cluster("8B", qwen3_vl_8b(), ParallelSection(world_size=64, tensor=4))


def cluster_32b() -> RunConfig:
    """Qwen3-VL-32B on 256 GPUs.

    No pipeline: a first stage keeps the tower's activations of as many microbatches as there are stages.
    """
    config = _cluster("32B", qwen3_vl_32b(), ParallelSection(world_size=256, tensor=8))
    config.training.recompute = "full"
    return config


def _cluster(size: str, model: ModelConfig, parallel: ParallelSection) -> RunConfig:
    """What the sizes share: rows of 8,192 tokens, 512 a step (4.2 M tokens), 20,000 steps (84 B tokens)."""
    return RunConfig(
        model=model,
        data=DataSection(
            path="data",
            packing=True,
            seq_len_tokens=8192,
            sample_align_tokens=8,  # context up to 4, and rows stay the same when it changes
            max_pixels=4_194_304,  # 4,096 tokens: the largest image leaves half a row for text
            max_bad_fraction=0.001,
            num_workers=4,
        ),
        parallel=parallel,
        optimizer=OptimizerSection(lr=1e-5, vision_lr=2e-6, min_lr=1e-6, warmup_tokens=500 * 512 * 8192),
        training=TrainingSection(steps=20_000, global_batch_rows=512),
        checkpoint=CheckpointSection(
            every_steps=500,
            async_save=True,
            keep_last=3,  # 14 bytes a parameter each; one damaged still leaves two
            keep_every_steps=5_000,  # for what is looked at later: averages, other decays, evaluation
            start_from=f"hf/Qwen3-VL-{size}-Instruct",
        ),
    )
