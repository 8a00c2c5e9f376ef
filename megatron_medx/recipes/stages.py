"""The stages of training, each a small change of a run: align, pretrain, midtrain, sft.

Each function takes a run, changes it and returns it: `align` and `pretrain` a base run (recipes/cluster.py, demo.py),
`midtrain` a pretraining run, `sft` a mid-training run. Amounts are shares of the base run's, so that the same functions
make the demo's stages.

Sources. Order and what is trained in the later stages follow what is told of MedXIAOHE (arXiv 2602.12705): continued
pretraining, mid-training with the tower trained jointly, SFT. It publishes no rates, lengths or schedules: those are
Seed1.5-VL's (arXiv 2505.07062, its stages 0, 1, 2 and SFT), scaled to the base run. They are defaults to start a search
from, not facts about MedXIAOHE.
"""

from megatron_medx.config.run import RunConfig


def align(config: RunConfig) -> RunConfig:
    """Mergers alone, on images with captions."""
    optimizer, training = config.optimizer, config.training
    training.freeze = ("vision", "language")  # stage 0 trains the adapter only; with the tower it was worse
    training.steps //= 10
    training.global_batch_rows //= 2
    # Short captions fill a packed row by the dozen; weighted by their tokens, packing hurt this stage (Lingshu).
    training.loss_average = "sample"
    optimizer.lr *= 5  # stage 0 to stage 1: 2.52e-4 to 5.22e-5
    optimizer.min_lr = optimizer.lr / 5  # 2.52e-4 down to 4.5e-5
    optimizer.vision_lr = None
    optimizer.warmup_tokens = tokens(config, 0.05)  # 100 steps of 16 B tokens at 8.4 M a step
    return config


def pretrain(config: RunConfig) -> RunConfig:
    """All parts, continued pretraining (CPT) on documents and images."""
    config.training.freeze = ()
    config.training.loss_average = "token"  # long documents: each token counts alike, as in the decoder's own training
    config.optimizer.schedule = "cosine"  # stage 1
    return config


def midtrain(config: RunConfig) -> RunConfig:
    """All parts at the rates where pretraining ended, on reasoning data."""
    optimizer = config.optimizer
    # Stage 2: constant at the final rate, no warm-up, optimizer state loaded. The tower stays trained, at its own rate.
    optimizer.vision_lr = optimizer.vision_lr and optimizer.vision_lr * optimizer.min_lr / optimizer.lr
    optimizer.lr = optimizer.min_lr
    optimizer.schedule = "constant"
    optimizer.warmup_tokens = 0
    config.training.steps = config.training.steps * 8 // 100  # 240 B after 3 T tokens
    config.checkpoint.carry_optimizer = True
    return config


def sft(config: RunConfig) -> RunConfig:
    """Decoder and mergers, on instructions with answers; fresh optimizer."""
    optimizer, training = config.optimizer, config.training
    training.freeze = ("vision",)
    training.steps //= 2  # depends on the data: two passes there
    training.global_batch_rows //= 2  # 2.1 M tokens a step
    # Answers of two tokens and of two thousand: per token the long ones drown the short, per sample a token of the
    # short ones weighs a thousand times one of the long. The square root is between (InternVL 2.5, arXiv 2412.05271).
    training.loss_average = "sqrt"
    optimizer.lr, optimizer.vision_lr, optimizer.schedule = 10 * optimizer.min_lr, None, "cosine"  # 2e-5 to 2e-6
    optimizer.warmup_tokens = tokens(config, 0.1)
    config.checkpoint.carry_optimizer = False
    return config


def tokens(config: RunConfig, share: float) -> int:
    """Token slots of so large a share of the run's steps, at least of one."""
    return max(1, round(share * config.training.steps)) * config.tokens_per_step
