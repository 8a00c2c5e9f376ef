"""The names of `megatron.training` that are wrapped so that a run is validated: on every set, and at step 0.

Written against megatron-core 0.19.2; `tests/unit/training/test_validation_hooks.py` pins what is relied on.
"""

import functools
import inspect
import time
from pathlib import Path

import megatron.training.training as megatron_loop
from megatron.training import get_args

from megatron_medx.config.run import RunConfig
from megatron_medx.training.generations import GenerationLog
from megatron_medx.training.loss import StepLosses
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.validation import ValidationLog
from megatron_medx.training.validation_rows import ValidationRows


def set_up(config: RunConfig, folder: Path, monitor: StepMonitor, losses: StepLosses) -> ValidationRows | None:
    """Wrap the loop of this process; survival_hooks.py then wraps what this leaves.

    So a validation has the watchdog's patience, and a run that is told to leave before its first step leaves at once.

    Args:
        config: the run.
        folder: run folder.
        monitor: knows whether this rank reports, and where people look.
        losses: of the microbatch at hand, which the forward step fills.

    Returns:
        What Megatron's loop is given to evaluate; None for a run that is not validated.
    """
    if not config.training.validate_every_steps:
        return None
    rows = ValidationRows(config)
    asks = config.training.validate_generations > 0
    generations = GenerationLog(config, folder, rows, monitor) if asks else None
    _validate_every_set(rows, losses, ValidationLog(folder, monitor), generations)
    if config.training.validate_at_start:
        _validate_at_step_0()
    return rows


def _validate_every_set(
    rows: ValidationRows, losses: StepLosses, log: ValidationLog, generations: GenerationLog | None
) -> None:
    """`evaluate_and_print_results` goes through `eval_iters` batches: once for each set, whose rows follow one another.

    Megatron's own sums are of single precision; ours are those of `losses`. It is also called after the last step,
    whether or not that was due, and breaks off, on all ranks, when the run's time is up.
    """
    original = megatron_loop.evaluate_and_print_results
    parameters = inspect.signature(original)

    @functools.wraps(original)
    def validated(*args, **kwargs) -> None:
        said = parameters.bind(*args, **kwargs).arguments
        step = said["iteration"]
        if log.is_done(step):
            return
        log.start(step)
        for name, of_set in rows.sets.items():
            losses.start_validation(rows.meter)
            get_args().eval_iters = rows.num_batches(name)
            start_s = time.perf_counter()
            original(*args, **kwargs)
            if len(losses.microbatches) < rows.num_microbatches(name):
                return
            log.record(name, of_set.num_rows, losses, time.perf_counter() - start_s)
        if generations is not None:
            generations.record(step, said["model"])

    megatron_loop.evaluate_and_print_results = validated


def _validate_at_step_0() -> None:
    """`train` is given all that evaluating needs; step 0 is the start of a run that no checkpoint was loaded of.

    Weights that are gathered while the forward pass goes on are whole before the first step; the hooks that gather them
    rest meanwhile, as they do where Megatron evaluates.
    """
    original = megatron_loop.train
    parameters = inspect.signature(original)

    @functools.wraps(original)
    def trained(*args, **kwargs):
        if get_args().iteration == 0:
            said = parameters.bind(*args, **kwargs)
            said.apply_defaults()
            _evaluate(said.arguments)
        return original(*args, **kwargs)

    megatron_loop.train = trained


def _evaluate(given: dict) -> None:
    """Call what Megatron's loop calls, before it begins.

    Args:
        given: arguments of `train` by name.
    """
    gathers = megatron_loop.should_disable_forward_pre_hook(get_args())
    if gathers:
        megatron_loop.disable_forward_pre_hook(given["model"], param_sync=False)
    megatron_loop.evaluate_and_print_results(
        "iteration 0",
        given["forward_step_func"],
        given["valid_data_iterator"],
        given["model"],
        0,
        given["process_non_loss_data_func"],
        given["config"],
        verbose=False,
        write_to_tensorboard=False,
        non_loss_data_func=given["non_loss_data_func"],
        pg_collection=given["pg_collection"],
        p2p_communicator=given["p2p_communicator"],
    )
    if gathers:
        megatron_loop.enable_forward_pre_hook(given["model"])
