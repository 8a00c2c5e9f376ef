"""What is relied on of Megatron's way out of its loop, and that our signals take it."""

import inspect
import signal
from types import SimpleNamespace

import pytest


@pytest.fixture
def loop(monkeypatch):
    """Megatron's loop; whatever is wrapped is as before afterwards."""
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    import megatron.training.training as loop
    from megatron.training import global_vars

    names = ("checkpoint_and_decide_exit", "train", "train_step", "training_log", "save_checkpoint_and_time")
    for name in (*names, "evaluate_and_print_results", "maybe_finalize_async_save"):
        monkeypatch.setattr(loop, name, getattr(loop, name))
    handler = global_vars.DistributedSignalHandler
    monkeypatch.setattr(handler, "signals_received", handler.signals_received)
    monkeypatch.setattr(global_vars, "_GLOBAL_SIGNAL_HANDLER", None)
    before = signal.getsignal(signal.SIGTERM)
    yield loop
    signal.signal(signal.SIGTERM, before)


class Leaving:
    """An interruption that is due from a step on."""

    def __init__(self, from_step):
        self.step, self.cause, self.from_step = 0, None, from_step

    def is_due(self):
        if self.step >= self.from_step:
            self.cause = "SIGTERM"
        return self.cause is not None


@pytest.fixture
def arguments(loop, monkeypatch):
    """What Megatron's loop reads, and the steps that it saves."""
    from megatron_medx.training import survival_hooks

    saved = []
    settings = SimpleNamespace(
        exit_signal_handler=True, save="somewhere", save_interval=2, non_persistent_save_interval=None, iteration=0,
        exit_duration_in_mins=None, exit_interval=None, phase_transition_iterations=None, saved=saved,
    )  # fmt: skip
    monkeypatch.setattr(loop, "get_args", lambda: settings)
    monkeypatch.setattr(survival_hooks, "get_args", lambda: settings)
    monkeypatch.setattr(loop, "get_timers", lambda: None)
    monkeypatch.setattr(loop, "print_datetime", lambda *_: None)
    monkeypatch.setattr(loop, "save_checkpoint_and_time", lambda step, *args, **kwargs: saved.append(step))
    return settings


def install(leaving, tell=None, step_done=lambda *_: None):
    from megatron.training import global_vars

    from megatron_medx.training import survival_hooks

    watched = SimpleNamespace(patiently=lambda function: function, step_done=step_done)
    global_vars._set_signal_handler(signal.SIGTERM)  # Megatron does so when it parses its arguments
    survival_hooks.install(leaving, watched, tell)


def decide(loop, step):
    return loop.checkpoint_and_decide_exit(None, None, None, step, 0, None, None)


def test_the_loop_looks_up_what_is_wrapped_by_its_module_name(loop):
    assert "train" in loop.pretrain.__code__.co_names
    names = set(loop.train.__code__.co_names)
    assert {"checkpoint_and_decide_exit", "maybe_finalize_async_save", "exit", "curr_iteration"} <= names
    assert "iteration" in inspect.signature(loop.checkpoint_and_decide_exit).parameters
    assert {"get_signal_handler", "signals_received", "get_args"} <= set(
        loop.checkpoint_and_decide_exit.__code__.co_names
    )
    source = inspect.getsource(loop.train)
    finalize = source.rindex("maybe_finalize_async_save(blocking=True, terminate=True)")
    assert finalize < source.rindex("sys.exit(exit_code)"), "a save in the background is whole before the ranks leave"


def test_a_signal_saves_the_step_and_ends_the_loop(loop, arguments):
    leaving = Leaving(from_step=3)
    install(leaving)
    assert [decide(loop, step) for step in (1, 2, 3)] == [False, False, True]
    assert arguments.saved == [2, 3] and (leaving.step, leaving.cause) == (3, "SIGTERM")


def test_a_signal_at_a_step_that_is_saved_anyway_saves_it_once(loop, arguments):
    install(Leaving(from_step=4))
    assert decide(loop, 4) and arguments.saved == [4]


def test_after_a_signal_no_first_step_is_begun(loop, arguments, monkeypatch):
    begun = []
    monkeypatch.setattr(loop, "train", lambda *args: begun.append(args))
    leaving = Leaving(from_step=5)
    install(leaving)
    loop.train("forward step")
    assert begun == [("forward step",)]
    arguments.iteration = 5
    with pytest.raises(SystemExit) as end:
        loop.train("forward step")
    assert not end.value.code and len(begun) == 1 and leaving.step == 5 and not arguments.saved


@pytest.mark.parametrize(
    ("name", "value", "cause"), [("exit_interval", 3, "exit_interval"), ("exit_duration_in_mins", -1, None)]
)
def test_what_megatron_leaves_for_is_known(loop, arguments, name, value, cause, monkeypatch):
    import torch

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *args, **kwargs: None)
    leaving = Leaving(from_step=99)
    setattr(arguments, name, value)
    install(leaving)
    assert decide(loop, 3)
    assert leaving.cause == (cause or name)
    assert arguments.saved == [3]


def test_the_first_step_of_a_launch_is_told_once(loop, arguments, monkeypatch):
    told = []
    monkeypatch.setattr(loop, "training_log", lambda loss_dict, iteration: "logged")
    install(Leaving(from_step=99), told.append)
    for step in (6, 7):
        arguments.curr_iteration = step - 1  # what Megatron sets before a step
        assert loop.training_log({}, step) == "logged"
    assert told == [6]


def test_a_step_is_told_to_the_watchdog_with_its_number_and_duration(loop, arguments, monkeypatch):
    steps = []
    monkeypatch.setattr(loop, "train_step", lambda: "result")
    install(Leaving(from_step=99), step_done=lambda step, duration_s: steps.append((step, duration_s >= 0)))
    arguments.curr_iteration = 4
    assert loop.train_step() == "result" and steps == [(5, True)]
