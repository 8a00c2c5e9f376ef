"""The names of `megatron.training` that are wrapped, and why.

`pretrain` has no callbacks for these places. Each wrapper calls the original with its arguments unchanged, but for the
number of tokens that gradients are divided by.
Written against megatron-core 0.19.2; `tests/unit/training/test_hooks.py` pins what is relied on.
"""

import functools
import inspect
import multiprocessing
import os
import queue
import time
from collections.abc import Sequence
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any, Protocol

import megatron.training.training as megatron_loop
import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.num_microbatches_calculator import update_num_microbatches
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.training import get_args

from megatron_medx.config.run import OptimizerSection, RunConfig
from megatron_medx.parallel.optimizer_state import keep_bucket_padding
from megatron_medx.training import metric_hooks
from megatron_medx.training.bad_steps import BadStepGuard
from megatron_medx.training.interruption import die_with
from megatron_medx.training.loss import StepLosses
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.rates import rate_overrides


class Follower(Protocol):
    """What is done beside training with checkpoints; of use on the reporting rank alone."""

    def saved(self, step: int) -> None:
        """A checkpoint was handed to Megatron, which may finish it later."""

    def advance(self) -> None:
        """A step is done: see what has ended and start what can start, without waiting."""


def install(
    config: RunConfig,
    folder: Path,
    resume: bool,
    monitor: StepMonitor,
    losses: StepLosses,
    guard: BadStepGuard,
    followers: Sequence[Follower],
) -> None:
    """Wrap the loop of this process: rates by part, the average's denominator, bad steps, step times, our metrics.

    And what is loaded: the rates of this run, not the checkpoint's, and step 0 with a carried optimizer. And what is
    done between steps: followers are told of the checkpoints that are saved.
    """
    keep_bucket_padding()
    if config.checkpoint.async_save:
        _let_the_helper_die_with_its_rank()
    else:
        _save_without_a_helper()
    _give_parts_their_rates(config.optimizer)
    _keep_own_hyperparameters()
    if config.checkpoint.carry_optimizer and not resume:
        _load_at_step_0()
    _divide_by_the_denominator(losses)
    _guard_steps(guard)
    metric_hooks.install(config, folder, monitor, losses)
    if followers:
        _follow_checkpoints(followers, monitor)
    _save_no_step_twice()


def _save_without_a_helper() -> None:
    """A save that nobody runs in the background hands its results to itself: no process is needed between.

    Megatron would start one on every rank, which imports torch anew: 3 s of processor time before the first save.
    """
    filesystem_async._results_queue = queue.SimpleQueue()


def _let_the_helper_die_with_its_rank() -> None:
    """Saving beside training needs it, a process that holds a queue; a rank that is killed would leave it for ever."""
    manager = SyncManager(ctx=multiprocessing.get_context("fork"))
    manager.start(initializer=die_with, initargs=(os.getpid(),))
    filesystem_async._results_queue = manager.Queue()


def _give_parts_their_rates(optimizer: OptimizerSection) -> None:
    """`get_megatron_optimizer_config` is where Megatron says that overrides by parameter belong."""
    original = megatron_loop.get_megatron_optimizer_config

    def with_rates(args: Any) -> tuple:
        config, overrides = original(args)
        return config, {**overrides, **rate_overrides(optimizer)}

    megatron_loop.get_megatron_optimizer_config = with_rates


def _keep_own_hyperparameters() -> None:
    """`DistributedOptimizer.load_state_dict` finds a stored parameter group by its rates and takes them all over.

    A run that goes on, or carries an optimizer, at other rates would find none, and its betas would be the former ones.
    """
    original = DistributedOptimizer.load_state_dict

    def load_state_dict(self, state: dict) -> None:
        groups = own_groups(self.param_groups, state["optimizer"]["param_groups"])
        original(self, {**state, "optimizer": {**state["optimizer"], "param_groups": groups}})

    DistributedOptimizer.load_state_dict = load_state_dict


def own_groups(own: list[dict], stored: list[dict]) -> list[dict]:
    """The parameter groups of this run, with the checkpoint's count of steps, which Adam corrects its moments by.

    Args:
        own: what the optimizer was built with; `params` is left out, as in a checkpoint.
        stored: all groups of a checkpoint have made the same steps; before the first one there may be no count.
    """
    former = stored[0] if stored else {}
    count = {"step": former["step"]} if "step" in former else {}
    return [{**{key: value for key, value in group.items() if key != "params"}, **count} for group in own]


def _load_at_step_0() -> None:
    """`load_checkpoint` takes over weights and moments, and also where the former run was: that is set back."""
    original = megatron_loop.load_checkpoint

    def load_checkpoint(model, optimizer, opt_param_scheduler, *args, **kwargs) -> tuple[int, int]:
        original(model, optimizer, opt_param_scheduler, *args, **kwargs)
        arguments = get_args()
        arguments.consumed_train_samples = arguments.skipped_train_samples = arguments.consumed_valid_samples = 0
        update_num_microbatches(consumed_samples=0)
        opt_param_scheduler.step(-opt_param_scheduler.num_steps)
        return 0, 0  # step, FLOPs so far

    megatron_loop.load_checkpoint = load_checkpoint


def _divide_by_the_denominator(losses: StepLosses) -> None:
    """Gradients are divided by the exact float64 sum of weights, whatever its size.

    Megatron's schedules add up whole tokens alone, and the original divides by at least 1, which is wrong for messages
    of small weight. So the original is told of no tokens and leaves the gradients as sums; then they are divided here,
    by the last stage's weights summed over data- and context-parallel ranks. Without trained tokens gradients are 0.
    """
    original = megatron_loop.finalize_model_grads

    def exact(model, num_tokens=None, *args, **kwargs):
        original(model, None, *args, **kwargs)
        if num_tokens is None:
            return
        denominator = losses.denominator(num_tokens.device)
        last_stage = mpu.get_pipeline_model_parallel_last_rank()
        dist.broadcast(denominator, src=last_stage, group=mpu.get_pipeline_model_parallel_group())
        dist.all_reduce(denominator, group=mpu.get_data_parallel_group(with_context_parallel=True))
        scale = torch.where(denominator > 0, 1.0 / denominator, 0.0)
        for chunk in model:
            chunk.scale_gradients(scale)

    megatron_loop.finalize_model_grads = exact


def _guard_steps(guard: BadStepGuard) -> None:
    """`train_step` is where the optimizer is at hand and the step's number is known."""
    original = megatron_loop.train_step
    parameters = inspect.signature(original)

    @functools.wraps(original)  # those that wrap it as well ask for its parameters
    def guarded(*args, **kwargs):
        said = parameters.bind(*args, **kwargs).arguments
        guard.start_step(said["iteration"] + 1, get_args().consumed_train_samples, said["optimizer"])
        return original(*args, **kwargs)

    megatron_loop.train_step = guarded


def _save_no_step_twice() -> None:
    """A run that goes on at its last step, and has none to train, would write its only checkpoint of it once more.

    Killed meanwhile, it would leave half of one. `iteration` of Megatron's arguments is the step that was loaded.
    """
    original = megatron_loop.save_checkpoint_and_time
    parameters = inspect.signature(original)

    def saved(*args, **kwargs) -> None:
        if parameters.bind(*args, **kwargs).arguments["iteration"] != get_args().iteration:
            original(*args, **kwargs)

    megatron_loop.save_checkpoint_and_time = saved


def _follow_checkpoints(followers: Sequence[Follower], monitor: StepMonitor) -> None:
    """`save_checkpoint_and_time` hands a checkpoint over, to be finished now or later; each step looks what is due."""
    save, log = megatron_loop.save_checkpoint_and_time, megatron_loop.training_log
    parameters = inspect.signature(save)

    @functools.wraps(save)
    def saved(*args, **kwargs) -> None:
        step, start = parameters.bind(*args, **kwargs).arguments["iteration"], time.perf_counter()
        monitor.saving_step = step
        save(*args, **kwargs)
        monitor.saving_step, monitor.save_time_s = None, time.perf_counter() - start
        for follower in followers:
            follower.saved(step)

    @functools.wraps(log)
    def logged(*args, **kwargs):
        for follower in followers:
            follower.advance()
        return log(*args, **kwargs)

    megatron_loop.save_checkpoint_and_time, megatron_loop.training_log = saved, logged
