"""Bad steps on one rank, with an optimizer that only has what the guard touches."""

import contextlib
import io
import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from megatron_medx.errors import DataError
from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder import events
from megatron_medx.training.loss import StepLosses

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def bad_steps():
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    from megatron_medx.training import bad_steps

    return bad_steps


@pytest.fixture(autouse=True)
def alone():
    """torch.distributed with this process as the only rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Optimizer:
    """`prepare_grads` and the parameters of several optimizers in a chain, each with its own gradients."""

    def __init__(self, *chain):
        self._parameters = [torch.nn.Parameter(torch.zeros(len(gradient))) for gradient in chain]
        for parameter, gradient in zip(self._parameters, chain, strict=True):
            parameter.grad = torch.tensor(gradient)
        self.num_prepared = 0

    def get_parameters(self):
        return self._parameters

    def prepare_grads(self):
        self.num_prepared += 1
        return False


@pytest.fixture
def guarded(bad_steps, tmp_path):
    """Build a guard whose first step has these microbatches; (guard, losses, screen, lines)."""
    from megatron_medx.training.monitor import StepMonitor

    def build(on_bad_loss, optimizer, microbatches, step=3, **survival):
        config = get_recipe("demo")
        config.training.on_bad_loss = on_bad_loss
        for name, value in survival.items():
            setattr(config.survival, name, value)
        screen, losses = io.StringIO(), StepLosses()
        guard = bad_steps.BadStepGuard(config, tmp_path, losses, StepMonitor(config, tmp_path, screen))
        guard.start_step(step, 2 * (step - 1), optimizer)
        add(losses, microbatches)
        return SimpleNamespace(guard=guard, losses=losses, screen=screen, lines=lambda: read_lines(tmp_path))

    return build


def add(losses, microbatches):
    """Microbatches of the running step."""
    for sample_ids, loss_sum, denominator in microbatches:
        entry = losses.add(sample_ids)
        if loss_sum is not None:
            entry.loss_sum = torch.tensor(loss_sum)
            entry.denominator = torch.tensor(denominator, dtype=torch.float64)


def read_lines(folder):
    path = folder / "bad_steps.jsonl"

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()] if path.exists() else []


GOOD = [(["a", "b"], 4.0, 2.0), (["c"], 2.0, 1.0)]


def test_a_sound_step_is_updated(guarded):
    optimizer = Optimizer([1.0, -2.0], [3.0])
    step = guarded("stop", optimizer, GOOD)
    assert optimizer.prepare_grads() is False and optimizer.num_prepared == 1
    assert step.lines() == [] and step.screen.getvalue() == ""


def test_a_step_without_trained_tokens_is_sound(guarded):
    optimizer = Optimizer([0.0])
    guarded("stop", optimizer, [(["a"], 0.0, 0.0)])
    assert optimizer.prepare_grads() is False


def test_a_rank_without_loss_and_without_trained_parameters_is_sound(guarded):
    optimizer = Optimizer()
    guarded("stop", optimizer, [(["a"], None, None)])
    assert optimizer.prepare_grads() is False


@pytest.mark.parametrize(("bad", "said"), [(NAN, "nan"), (INF, "inf"), (-INF, "-inf")])
def test_a_bad_loss_is_skipped_and_its_samples_are_named(bad, said, guarded):
    optimizer = Optimizer([1.0])
    step = guarded("skip", optimizer, [*GOOD, (["d", "e"], bad, 3.0), (["d"], bad, 3.0)])
    assert optimizer.prepare_grads() is True
    assert step.lines() == [{"step": 3, "what": "loss", "loss": said, "sample_ids": ["d", "e"]}]
    assert f"skipped step 3: loss {said} in samples d, e" in step.screen.getvalue()


@pytest.mark.parametrize("gradient", [[1.0, NAN], [INF], [3e19, 1.0]], ids=["nan", "inf", "norm overflows"])
def test_a_bad_gradient_blames_all_samples_of_the_step(gradient, guarded):
    """Of any optimizer in the chain. 3e19 is finite, its square is not: Megatron's clipping would make it 0."""
    optimizer = Optimizer([1.0], gradient)
    step = guarded("skip", optimizer, GOOD)
    assert optimizer.prepare_grads() is True
    assert step.lines() == [{"step": 3, "what": "gradient", "loss": 2.0, "sample_ids": ["a", "b", "c"]}]


def test_a_precision_aware_optimizer_is_seen_through(guarded):
    optimizer = Optimizer([1.0])
    (parameter,) = optimizer.get_parameters()
    parameter.grad, parameter.decoupled_grad = None, torch.tensor([NAN])
    guarded("skip", optimizer, GOOD)
    assert optimizer.prepare_grads() is True


def test_stopping_names_the_samples_and_the_checkpoint(guarded, tmp_path):
    optimizer = Optimizer([1.0])
    ids = [f"x-{number}" for number in range(11)]
    step = guarded("stop", optimizer, [*GOOD, (ids, NAN, 3.0)])
    with pytest.raises(DataError) as raised:
        optimizer.prepare_grads()
    assert "step 3: loss nan in samples x-0" in raised.value.found
    assert "x-7 and 3 more (bad_steps.jsonl)" in raised.value.found
    assert "training.on_bad_loss=skip" in raised.value.do and "no checkpoint was saved" in raised.value.do
    assert step.lines()[0]["sample_ids"] == ids
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2\n")
    with pytest.raises(DataError, match="--resume goes on from the checkpoint of step 2"):
        optimizer.prepare_grads()


def test_an_optimizer_is_wrapped_once_and_each_step_starts_anew(guarded):
    optimizer = Optimizer([1.0])
    step = guarded("skip", optimizer, [(["a"], NAN, 1.0)])
    assert optimizer.prepare_grads() is True
    step.guard.start_step(4, 6, optimizer)
    assert optimizer.prepare_grads() is False and optimizer.num_prepared == 2
    assert [line["step"] for line in step.lines()] == [3]


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_every_policy_writes_an_event(policy, guarded, tmp_path):
    optimizer = Optimizer([NAN])
    guarded(policy, optimizer, GOOD)
    with contextlib.suppress(DataError):
        optimizer.prepare_grads()
    [event] = events.read(tmp_path)
    del event["time"]
    assert event == {"event": "bad_step", "step": 3, "what": "gradient", "loss": 2.0, "applied": False}


def write_metrics(folder, losses):
    """Steps 1, 2, ... of a launch before."""
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_spike_is_left_out_and_does_not_become_usual(guarded, tmp_path):
    write_metrics(tmp_path, [2.0] * 21)
    optimizer = Optimizer([1.0])
    step = guarded("rollback", optimizer, [], step=22, spike_factor=2.0, bad_steps=9)
    for number, loss, is_left_out in ((22, 4.5, True), (23, 4.5, True), (24, 3.5, False), (25, 4.5, True)):
        step.guard.start_step(number, 2 * (number - 1), optimizer)
        add(step.losses, [(["a"], 2 * loss, 2.0), (["b"], loss, 1.0)])
        assert optimizer.prepare_grads() is is_left_out, number
    first = step.lines()[0]
    assert first == {"step": 22, "what": "spike", "loss": 4.5, "sample_ids": ["a", "b"], "median": 2.0}
    assert "skipped step 22: loss 4.5 where the median before is 2 in samples a, b" in step.screen.getvalue()


def test_ranks_without_the_loss_learn_the_verdict(bad_steps):
    """Entries of a first stage have samples alone; tensor-parallel ranks repeat a microbatch."""
    gathered = [(["a"], None, None), (["b"], None, None), (["a"], 3.0, 2.0), (["a"], 3.0, 2.0), (["b"], 1.0, 2.0)]
    assert bad_steps.blamed_samples(gathered, "gradient") == ["a", "b"]
    assert bad_steps.step_loss([(["a"], None, None), (["a"], 3.0, 2.0), (["b"], 1.0, 2.0)]) == 1.0
    assert bad_steps.step_loss([(["a"], 0.0, 0.0)]) is None


@pytest.mark.parametrize("kind", ["DistributedOptimizer", "ChainedOptimizer"])
def test_megatron_leaves_the_update_out_when_prepare_grads_says_so(kind, bad_steps):
    """What a skip relies on: `step` asks `self.prepare_grads` and returns False before anything else."""
    import megatron.core.optimizer.distrib_optimizer
    import megatron.core.optimizer.optimizer

    optimizers = vars(megatron.core.optimizer.optimizer) | vars(megatron.core.optimizer.distrib_optimizer)

    optimizer = object.__new__(optimizers[kind])
    optimizer.config = SimpleNamespace(timers=None)
    optimizer.prepare_grads = lambda: True
    assert optimizer.step() == (False, None, None)
