"""The names of `megatron.training` that are wrapped so that a run ends well: signals, hangs, the first step.

Megatron's way out is kept: after a step it asks its signal handler, saves, waits for what is saved in the background,
meets all ranks and exits. Only who answers is ours: Megatron's handler knows one signal, and runs in the main thread,
where it cannot be while helpers, loaders and CUDA start.
Written against megatron-core 0.19.2; `tests/unit/training/test_survival_hooks.py` pins what is relied on.
"""

import functools
import inspect
import sys
import time
from collections.abc import Callable

import megatron.training.training as megatron_loop
from megatron.training import get_args
from megatron.training.dist_signal_handler import DistributedSignalHandler

from megatron_medx.training.interruption import Interruption
from megatron_medx.training.watchdog import Watchdog


def install(interruption: Interruption, watchdog: Watchdog, tell_first_step: Callable[[int], None] | None) -> None:
    """Wrap the loop of this process; hooks.py then wraps what this leaves, whose parameters stay to be seen.

    Args:
        interruption: asked after each step, and before the first.
        watchdog: told of each step, save and validation.
        tell_first_step: called with the number of the first step of this launch; None on ranks that do not report.
    """
    _leave_on_signals(interruption)
    _watch_for_hangs(watchdog)
    if tell_first_step is not None:
        _tell_of_the_first_step(tell_first_step)


def _leave_on_signals(interruption: Interruption) -> None:
    """Megatron's signal handler gives way to `interruption`, also the one that exists since arguments were parsed.

    `checkpoint_and_decide_exit` asks it, knows the step, and tells whether the loop leaves. In front of `train` it is
    asked as well: who has not begun a step has nothing to save, and need not wait for one.
    """
    decide, train = megatron_loop.checkpoint_and_decide_exit, megatron_loop.train
    parameters = inspect.signature(decide)

    @functools.wraps(decide)
    def decided(*args, **kwargs) -> bool:
        interruption.step = parameters.bind(*args, **kwargs).arguments["iteration"]
        leaves = decide(*args, **kwargs)
        if leaves and interruption.cause is None:
            interval = get_args().exit_interval
            by_step = bool(interval) and interruption.step % interval == 0
            interruption.cause = "exit_interval" if by_step else "exit_duration_in_mins"
        return leaves

    @functools.wraps(train)
    def trained(*args, **kwargs):
        interruption.step = get_args().iteration
        if interruption.is_due():
            sys.exit()
        return train(*args, **kwargs)

    DistributedSignalHandler.signals_received = lambda self: [interruption.is_due()]
    megatron_loop.checkpoint_and_decide_exit, megatron_loop.train = decided, trained


def _watch_for_hangs(watchdog: Watchdog) -> None:
    """A step is `train_step`; what else takes its time has the patience of a start."""
    original = megatron_loop.train_step

    @functools.wraps(original)
    def watched(*args, **kwargs):
        start_s = time.monotonic()
        result = original(*args, **kwargs)
        watchdog.step_done(get_args().curr_iteration + 1, time.monotonic() - start_s)
        return result

    megatron_loop.train_step = watched
    for name in ("save_checkpoint_and_time", "evaluate_and_print_results", "maybe_finalize_async_save"):
        setattr(megatron_loop, name, watchdog.patiently(getattr(megatron_loop, name)))


def _tell_of_the_first_step(tell: Callable[[int], None]) -> None:
    original = megatron_loop.training_log
    first_steps: list[int] = []

    @functools.wraps(original)
    def logged(*args, **kwargs):
        if not first_steps:
            first_steps.append(get_args().curr_iteration + 1)
            tell(first_steps[0])
        return original(*args, **kwargs)

    megatron_loop.training_log = logged
