"""Where the loop of `megatron.training` is wrapped so that its numbers can be told; called by hooks.py.

As there, each wrapper calls the original with its arguments unchanged.
"""

import functools
import inspect
import time
from pathlib import Path

import megatron.training.training as megatron_loop

from megatron_medx.config.run import RunConfig
from megatron_medx.data.plan.mixture import read_mixture
from megatron_medx.run_folder.quantities import PARTS
from megatron_medx.run_folder.sources import source_names
from megatron_medx.training.gradient_norms import PartNorms, let_copies_keep_marks
from megatron_medx.training.loss import StepLosses
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.rank_times import RankTimes
from megatron_medx.training.rates import rates_now
from megatron_medx.training.step import step_counts


def install(config: RunConfig, folder: Path, monitor: StepMonitor, losses: StepLosses) -> None:
    """Wrap the loop of this process: step times, times of every rank, norms and rates by part, the line of a step."""
    norms = PartNorms(tuple(part for part in PARTS if part not in config.training.freeze))
    ranks = RankTimes(config, folder)
    sources = source_names([source.path for source in read_mixture(Path(config.data.path))])
    let_copies_keep_marks()
    _mark_when_gradients_are_ready(ranks)
    _time_steps(config, monitor, ranks, norms)
    _report_steps(monitor, losses, norms, sources)


def _mark_when_gradients_are_ready(ranks: RankTimes) -> None:
    """`finalize_model_grads` is called once a step, by all ranks, to sum their gradients."""
    original = megatron_loop.finalize_model_grads

    def marked(*args, **kwargs):
        ranks.gradients_ready()
        return original(*args, **kwargs)

    megatron_loop.finalize_model_grads = marked


def _time_steps(config: RunConfig, monitor: StepMonitor, ranks: RankTimes, norms: PartNorms) -> None:
    """A step is timed around `train_step`: saving and logging are not training.

    The learning rates are asked of the scheduler before it advances.
    """
    original = megatron_loop.train_step
    parameters = inspect.signature(original)

    @functools.wraps(original)
    def timed(*args, **kwargs):
        said = parameters.bind(*args, **kwargs).arguments
        step = said["iteration"] + 1
        monitor.rates = rates_now(said["opt_param_scheduler"], config.optimizer, config.training.freeze)
        norms.start_step(said["optimizer"])
        ranks.start_step(step)
        start = time.perf_counter()
        result = original(*args, **kwargs)
        monitor.end_step(time.perf_counter() - start)
        line = ranks.gather(step, monitor.step_time_s, monitor.data_wait_s)
        if line is not None and monitor.is_reporter:
            ranks.write(line)
            monitor.trackers.log_ranks(line)
        return result

    megatron_loop.train_step = timed


def _report_steps(monitor: StepMonitor, losses: StepLosses, norms: PartNorms, sources: list[str]) -> None:
    """`training_log` is called after every step with the reduced losses, which only the last stage has."""
    original = megatron_loop.training_log
    parameters = inspect.signature(original)

    @functools.wraps(original)  # those that wrap it as well ask for its parameters
    def logged(*args, **kwargs):
        said = parameters.bind(*args, **kwargs).arguments
        if said["loss_dict"]:
            reduced = {**said["loss_dict"], **step_counts(losses, sources)}
            monitor.part_norms = {part: norms.norm(part) for part in PARTS}
            monitor.step(said["iteration"], reduced, said["grad_norm"], skipped=bool(said["skipped_iter"]))
        return original(*args, **kwargs)

    megatron_loop.training_log = logged
