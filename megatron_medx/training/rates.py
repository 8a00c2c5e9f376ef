"""The learning rates of the parts of the network: what the optimizer is built with, and what a step learned with."""

from megatron.core.optimizer.optimizer_config import ParamKey
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, ParamGroupOverride

from megatron_medx.config.run import OptimizerSection
from megatron_medx.models.qwen3_vl import PART_PREFIXES


def schedules(optimizer: OptimizerSection) -> dict[str, ParamGroupOverride]:
    """Peak and final learning rate by part; the final one keeps the proportion of the base rate's."""
    own = {"vision": optimizer.vision_lr, "merger": optimizer.merger_lr, "language": optimizer.language_lr}
    peaks = {part: optimizer.lr if rate is None else rate for part, rate in own.items()}
    return {
        part: ParamGroupOverride(max_lr=peak, min_lr=optimizer.min_lr * peak / optimizer.lr)
        for part, peak in peaks.items()
    }


def rate_overrides(optimizer: OptimizerSection) -> dict[ParamKey, ParamGroupOverride]:
    """The schedules of parts that have a rate of their own, by Megatron's key for the parameters that they hold for."""
    overrides = {}
    for part, schedule in schedules(optimizer).items():
        if schedule["max_lr"] != optimizer.lr:
            # Parameters are named inside Megatron's wrappers: "module.vision.patch_embed.weight".
            patterns = tuple(f"*module.{prefix}*" for prefix in PART_PREFIXES[part])
            overrides[ParamKey(name=patterns)] = schedule
    return overrides


def rates_now(
    scheduler: OptimizerParamScheduler, optimizer: OptimizerSection, freeze: tuple[str, ...]
) -> dict[str, float | None]:
    """Rates of the step that is about to be made: `lr`, of the base schedule, and `lr_<part>`, None where frozen.

    The scheduler is asked, not the parameter groups: a rank holds those of its stage alone.

    Args:
        scheduler: Megatron's, before it advances.
    """
    base = ParamGroupOverride(max_lr=optimizer.lr, min_lr=optimizer.min_lr)
    by_part = {
        f"lr_{part}": None if part in freeze else scheduler.get_lr(schedule)
        for part, schedule in schedules(optimizer).items()
    }
    return {"lr": scheduler.get_lr(base), **by_part}
