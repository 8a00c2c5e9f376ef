"""The demo: a small Qwen3-VL that a laptop without a GPU trains in minutes on real medical images.

Same architecture, same code path as a cluster run: two ranks over gloo that share every matrix (tensor 2),
grouped-query attention, two DeepStack layers, images of any size. `medx data demo data/demo` writes its
data and the processor whose token ids stand below.
"""

from megatron_medx.config.model import ModelConfig, VisionConfig
from megatron_medx.config.run import (
    CheckpointSection,
    DataSection,
    OptimizerSection,
    ParallelSection,
    PrecisionSection,
    RunConfig,
    TrainingSection,
)

BASE_VOCAB_SIZE = 4070
"""Byte-level BPE tokens of the demo's tokenizer; Qwen's 26 special tokens follow in Qwen's order."""


def demo_model() -> ModelConfig:
    """About 3 M parameters; every number is small, none is special-cased."""
    return ModelConfig(
        hidden_size=160,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        ffn_hidden_size=480,
        vocab_size=BASE_VOCAB_SIZE + 26,
        vision=VisionConfig(
            hidden_size=96,
            num_layers=4,
            num_heads=4,
            ffn_hidden_size=288,
            deepstack_layers=(1, 2),
            num_position_embeddings=256,  # 16 x 16: images of the demo have 10 x 10 patches
        ),
        mrope_section=(6, 5, 5),
        tie_embeddings=True,
        max_positions=4096,
        vision_start_token_id=BASE_VOCAB_SIZE + 9,
        vision_end_token_id=BASE_VOCAB_SIZE + 10,
        image_token_id=BASE_VOCAB_SIZE + 12,
        video_token_id=BASE_VOCAB_SIZE + 13,
    )


def demo() -> RunConfig:
    """The tiny model on 2 ranks, tensor parallel, fp32: what `make demo` trains."""
    return RunConfig(
        model=demo_model(),
        data=DataSection(
            path="data/demo",
            packing=True,
            seq_len_tokens=512,
            min_pixels=4096,
            max_pixels=25_600,
            sample_align_tokens=4,  # context up to 2
        ),
        parallel=ParallelSection(world_size=2, tensor=2),
        optimizer=OptimizerSection(lr=2e-3, min_lr=2e-4, warmup_tokens=4096, weight_decay=0.01),
        training=TrainingSection(steps=240, global_batch_rows=2),
        precision=PrecisionSection(dtype="fp32"),
        checkpoint=CheckpointSection(every_steps=120),
    )


def demo_moe() -> RunConfig:
    """The demo as a mixture of experts on 2 ranks; `parallel.expert=2` deals four of the eight experts to each."""
    config = demo()
    config.model.num_experts = 8
    config.model.experts_per_token = 2
    config.model.expert_ffn_hidden_size = 224
    config.parallel = ParallelSection(world_size=2)
    # With the default seed two experts are equal to one token of step 5, to the last bit of fp32, and rounding chooses:
    # grids then differ by 1e-4. In the first steps of this seed no token stands that close to the choice.
    config.run.seed = 2
    return config
