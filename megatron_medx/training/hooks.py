"""The names of `megatron.training` that are wrapped, and why.

`pretrain` has no callbacks for these three places. Each wrapper calls the original with its arguments unchanged.
Written against megatron-core 0.19.2; `tests/unit/training/test_hooks.py` pins what is relied on.
"""

import inspect
import time
from typing import Any

import megatron.training.training as megatron_loop
from megatron.core.optimizer.optimizer_config import ParamKey
from megatron.core.optimizer_param_scheduler import ParamGroupOverride

from megatron_medx.config.run import OptimizerSection, RunConfig
from megatron_medx.models.qwen3_vl import PART_PREFIXES
from megatron_medx.training.monitor import StepMonitor


def install(config: RunConfig, monitor: StepMonitor) -> None:
    """Wrap the loop of this process: learning rates by part, step times, our metrics."""
    _give_parts_their_rates(config.optimizer)
    _time_steps(config.optimizer, monitor)
    _report_steps(monitor)


def _give_parts_their_rates(optimizer: OptimizerSection) -> None:
    """`get_megatron_optimizer_config` is where Megatron says that overrides by parameter belong."""
    original = megatron_loop.get_megatron_optimizer_config

    def with_rates(args: Any) -> tuple:
        config, overrides = original(args)
        return config, {**overrides, **rate_overrides(optimizer)}

    megatron_loop.get_megatron_optimizer_config = with_rates


def rate_overrides(optimizer: OptimizerSection) -> dict[ParamKey, ParamGroupOverride]:
    """Peak and final learning rate of each part that has its own; all follow the same schedule."""
    rates = {"vision": optimizer.vision_lr, "merger": optimizer.merger_lr, "language": optimizer.language_lr}
    overrides = {}
    for part, rate in rates.items():
        if rate is not None and rate != optimizer.lr:
            # Parameters are named inside Megatron's wrappers: "module.vision.patch_embed.weight".
            patterns = tuple(f"*module.{prefix}*" for prefix in PART_PREFIXES[part])
            final = optimizer.min_lr * rate / optimizer.lr
            overrides[ParamKey(name=patterns)] = ParamGroupOverride(max_lr=rate, min_lr=final)
    return overrides


def _time_steps(optimizer: OptimizerSection, monitor: StepMonitor) -> None:
    """A step is timed around `train_step`: saving and logging are not training.

    The learning rate is asked of the scheduler before it advances, for the base rate: a rank whose parameters are
    frozen, or all have rates of their own, could not name it.
    """
    original = megatron_loop.train_step
    base = {"max_lr": optimizer.lr, "min_lr": optimizer.min_lr}

    def timed(forward_step_func, data_iterator, model, torch_optimizer, opt_param_scheduler, *args, **kwargs):
        monitor.learning_rate = opt_param_scheduler.get_lr(base)
        start = time.perf_counter()
        result = original(
            forward_step_func, data_iterator, model, torch_optimizer, opt_param_scheduler, *args, **kwargs
        )
        monitor.step_time_s = time.perf_counter() - start
        return result

    megatron_loop.train_step = timed


def _report_steps(monitor: StepMonitor) -> None:
    """`training_log` is called after every step with the reduced losses, which only the last stage has."""
    original = megatron_loop.training_log
    parameters = inspect.signature(original)

    def logged(*args, **kwargs):
        said = parameters.bind(*args, **kwargs).arguments
        if said["loss_dict"]:
            monitor.step(said["iteration"], said["loss_dict"], said["grad_norm"])
        return original(*args, **kwargs)

    megatron_loop.training_log = logged
