"""How Megatron's loop is led through the validation sets, and to step 0."""

import inspect
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def loop():
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    import megatron.training.training

    return megatron.training.training


class Rows:
    """Two sets of 3 and 1 batches, two microbatches a batch on this rank."""

    def __init__(self):
        self.meter = "a meter"
        self.sets = {"validation": SimpleNamespace(num_rows=6), "chest": SimpleNamespace(num_rows=2)}

    def num_batches(self, name):
        return self.sets[name].num_rows // 2

    def num_microbatches(self, name):
        return self.sets[name].num_rows


@pytest.fixture
def told(loop, monkeypatch):
    """What is recorded, with an evaluation that computes as many microbatches as it is asked for, or `stop` fewer."""
    from megatron_medx.training import validation_hooks
    from megatron_medx.training.loss import StepLosses

    losses, told = StepLosses(), SimpleNamespace(lines=[], stop=0, step=None, arguments=SimpleNamespace(iteration=0))
    given = inspect.signature(loop.evaluate_and_print_results)

    def evaluate(*args, **kwargs):
        assert losses.meter == "a meter" and not losses.microbatches
        for number in range(2 * told.arguments.eval_iters - told.stop):
            losses.add([f"{given.bind(*args, **kwargs).arguments['iteration']}.{number}"])

    evaluate.__signature__ = given
    monkeypatch.setattr(loop, "evaluate_and_print_results", evaluate)
    monkeypatch.setattr(validation_hooks, "get_args", lambda: told.arguments)
    log = SimpleNamespace(
        is_done=lambda step: step == told.step,
        start=lambda step: setattr(told, "step", step),
        record=lambda name, rows, found, s: told.lines.append((told.step, name, rows, len(found.microbatches))),
    )
    losses.add(["of the step"])
    validation_hooks._validate_every_set(Rows(), losses, log, None)
    told.losses = losses
    return told


def evaluate_at(loop, step):
    loop.evaluate_and_print_results("prefix", "forward", "rows", "model", step, None, "config", verbose=False)


def test_what_is_wrapped_has_the_parameters_we_name_and_is_looked_up_in_its_module(loop):
    assert "iteration" in inspect.signature(loop.evaluate_and_print_results).parameters
    assert {"forward_step_func", "model", "valid_data_iterator", "process_non_loss_data_func", "config"} <= set(
        inspect.signature(loop.train).parameters
    )
    assert {"non_loss_data_func", "pg_collection", "p2p_communicator"} <= set(inspect.signature(loop.train).parameters)
    assert {"evaluate_and_print_results", "should_disable_forward_pre_hook"} <= set(loop.train.__code__.co_names)
    assert {"train", "evaluate_and_print_results"} <= set(loop.pretrain.__code__.co_names)
    assert "eval_iters" in loop.evaluate_and_print_results.__code__.co_names


def test_each_step_is_validated_once_on_every_set(loop, told):
    """Megatron asks again after the last step; of what came before nothing is left among the losses."""
    for step in (3, 3, 6):
        evaluate_at(loop, step)
    assert told.lines == [
        (step, name, rows, rows) for step in (3, 6) for name, rows in (("validation", 6), ("chest", 2))
    ]


def test_a_validation_that_is_broken_off_is_not_told(loop, told):
    """Its rows are not gone through, so what followed would be those of another set."""
    told.stop = 1
    evaluate_at(loop, 3)
    assert told.lines == []


def test_a_step_forgets_the_validation(loop, told):
    evaluate_at(loop, 3)
    told.losses.start_step()
    assert told.losses.meter is None and not told.losses.microbatches


@pytest.mark.parametrize(("iteration", "gathers"), [(0, False), (0, True), (7, False)])
def test_step_0_is_validated_before_a_run_begins_and_no_other(loop, told, monkeypatch, iteration, gathers):
    from megatron_medx.training import validation_hooks

    done = []
    given = inspect.signature(loop.train)

    def train(*args, **kwargs):
        done.append("trained")
        return "what train returns"

    train.__signature__ = given
    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(loop, "should_disable_forward_pre_hook", lambda args: gathers)
    monkeypatch.setattr(loop, "disable_forward_pre_hook", lambda model, param_sync: done.append(f"rest {param_sync}"))
    monkeypatch.setattr(loop, "enable_forward_pre_hook", lambda model: done.append("gather"))
    told.arguments.iteration = iteration
    validation_hooks._validate_at_step_0()
    found = loop.train("forward", ["model"], "optimizer", "scheduler", "rows", "held out", None, "config", {}, None)
    assert found == "what train returns"
    assert done == (["rest False", "gather"] if gathers else []) + ["trained"]
    assert [line[:2] for line in told.lines] == ([(0, "validation"), (0, "chest")] if iteration == 0 else [])
