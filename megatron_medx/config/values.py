"""Tables of what single fields may hold: bounds and choices.

`checks.py` walks over these tables; rules that relate several fields live there and in `grid.py`.
"""

from dataclasses import dataclass

from megatron_medx.config.run import RunConfig


@dataclass(frozen=True, slots=True)
class Bound:
    """An interval that a number must lie in; None is unbounded."""

    low: float | None = None
    high: float | None = None
    low_is_open: bool = False
    high_is_open: bool = False

    def holds(self, value: float) -> bool:
        """Return whether `value` lies inside."""
        if self.low is not None and (value < self.low or (self.low_is_open and value == self.low)):
            return False
        return self.high is None or value < self.high or (value == self.high and not self.high_is_open)

    def __str__(self) -> str:
        lower = "" if self.low is None else f"{'above' if self.low_is_open else 'at least'} {self.low:g}"
        upper = "" if self.high is None else f"{'below' if self.high_is_open else 'at most'} {self.high:g}"
        return " and ".join(part for part in (lower, upper) if part)


AT_LEAST_1 = Bound(low=1)
AT_LEAST_0 = Bound(low=0)
ABOVE_0 = Bound(low=0, low_is_open=True)
SHARE = Bound(low=0, high=1, high_is_open=True)

BOUNDS: dict[str, Bound] = {
    "run.seed": AT_LEAST_0,
    "model.hidden_size": AT_LEAST_1,
    "model.num_layers": AT_LEAST_1,
    "model.num_heads": AT_LEAST_1,
    "model.num_kv_heads": AT_LEAST_1,
    "model.head_dim": AT_LEAST_1,
    "model.ffn_hidden_size": AT_LEAST_1,
    "model.vocab_size": AT_LEAST_1,
    "model.rope_theta": ABOVE_0,
    "model.rms_norm_eps": ABOVE_0,
    "model.max_positions": AT_LEAST_1,
    "model.vision.hidden_size": AT_LEAST_1,
    "model.vision.num_layers": AT_LEAST_1,
    "model.vision.num_heads": AT_LEAST_1,
    "model.vision.ffn_hidden_size": AT_LEAST_1,
    "model.vision.patch_size": AT_LEAST_1,
    "model.vision.temporal_patch_size": AT_LEAST_1,
    "model.vision.merge_size": AT_LEAST_1,
    "model.vision.num_position_embeddings": AT_LEAST_1,
    "model.vision.in_channels": AT_LEAST_1,
    "model.num_experts": AT_LEAST_0,
    "model.experts_per_token": AT_LEAST_0,
    "model.expert_ffn_hidden_size": AT_LEAST_0,
    "model.router_aux_loss_coef": AT_LEAST_0,
    "data.seq_len_tokens": AT_LEAST_1,
    "data.sample_align_tokens": AT_LEAST_1,
    "data.min_pixels": AT_LEAST_1,
    "data.max_pixels": AT_LEAST_1,
    "data.max_row_patches": AT_LEAST_0,
    "data.max_bad_fraction": SHARE,
    "data.num_workers": AT_LEAST_0,
    "data.prefetch_rows": AT_LEAST_1,
    "parallel.world_size": AT_LEAST_1,
    "parallel.tensor": AT_LEAST_1,
    "parallel.pipeline": AT_LEAST_1,
    "parallel.virtual_pipeline": AT_LEAST_1,
    "parallel.first_stage_layers": AT_LEAST_1,
    "parallel.last_stage_layers": AT_LEAST_1,
    "parallel.context": AT_LEAST_1,
    "parallel.expert": AT_LEAST_1,
    "optimizer.lr": ABOVE_0,
    "optimizer.vision_lr": ABOVE_0,
    "optimizer.merger_lr": ABOVE_0,
    "optimizer.language_lr": ABOVE_0,
    "optimizer.min_lr": AT_LEAST_0,
    "optimizer.warmup_tokens": AT_LEAST_0,
    "optimizer.decay_tokens": AT_LEAST_0,
    "optimizer.weight_decay": AT_LEAST_0,
    "optimizer.beta1": SHARE,
    "optimizer.beta2": SHARE,
    "optimizer.eps": ABOVE_0,
    "optimizer.clip_grad_norm": AT_LEAST_0,
    "training.steps": AT_LEAST_1,
    "training.global_batch_rows": AT_LEAST_1,
    "training.validate_every_steps": AT_LEAST_0,
    "training.validate_rows": AT_LEAST_0,
    "training.validate_generations": AT_LEAST_0,
    "training.validate_generation_tokens": AT_LEAST_1,
    "precision.bf16_first_layers": AT_LEAST_0,
    "precision.bf16_last_layers": AT_LEAST_0,
    "precision.gate_steps": AT_LEAST_0,
    "precision.gate_max_gap": ABOVE_0,
    "checkpoint.every_steps": AT_LEAST_1,
    "checkpoint.export_every_steps": AT_LEAST_0,
    "checkpoint.keep_exports": AT_LEAST_0,
    "checkpoint.keep_last": AT_LEAST_0,
    "checkpoint.keep_every_steps": AT_LEAST_0,
    "survival.max_failures": AT_LEAST_1,
    "survival.hang_factor": AT_LEAST_0,
    "survival.hang_min_s": AT_LEAST_0,
    "survival.start_patience_s": ABOVE_0,
    "survival.bad_steps": AT_LEAST_1,
    "survival.spike_factor": AT_LEAST_0,
    "survival.max_rollbacks": AT_LEAST_0,
    "log.every_steps": AT_LEAST_1,
    "log.ranks_every_steps": AT_LEAST_0,
}
"""Key -> interval. A field that may be None is checked only when it is not."""

CHOICES: dict[str, tuple[str, ...]] = {
    "data.decoder": ("pillow", "dali"),
    "precision.dtype": ("bf16", "fp32"),
    "precision.fp8": ("none", "delayed", "tensorwise", "blockwise"),
    "training.recompute": ("none", "selective", "full"),
    "training.recompute_vision": ("none", "selective", "full"),
    "training.loss_average": ("token", "sample", "sqrt"),
    "training.on_bad_loss": ("stop", "skip", "rollback"),
    "optimizer.schedule": ("cosine", "linear", "constant", "wsd"),
}
"""Key -> the texts it may hold."""


def value_of(config: RunConfig, key: str) -> object:
    """Return the field that a dotted key names."""
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
