"""Where the parts of a step open ranges, and that nothing stays wrapped behind them."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from megatron_medx.parallel.cpu import enable_cpu_backend

enable_cpu_backend()

from megatron.core.pipeline_parallel import schedules  # noqa: E402

from megatron_medx.data.loader import RowLoader  # noqa: E402
from megatron_medx.training.profiling.parts import named_parts  # noqa: E402


class Layer(nn.Module):
    """Names of Megatron's."""

    def __init__(self):
        super().__init__()
        self.self_attention, self.mlp = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, h):
        return self.mlp(self.self_attention(h))


class Model(nn.Module):
    """The attributes of Qwen3VLModel that parts are found by; a last stage, so without tower and embedding."""

    def __init__(self, is_moe=False):
        super().__init__()
        self.decoder = nn.Sequential(Layer())
        self.decoder.layers = list(self.decoder)
        self.output_layer = nn.Linear(2, 2)
        self.sizes = SimpleNamespace(is_moe=is_moe)
        self.config = SimpleNamespace(finalize_model_grads_func=lambda: "finalized")

    def compute_language_model_loss(self, h):
        return h.sum()


@pytest.fixture
def ranges():
    """Names of the ranges, in the order in which they were opened, and a function that opens one."""
    opened = []

    @contextlib.contextmanager
    def open_range(part):
        opened.append(part)
        yield

    return SimpleNamespace(opened=opened, open=open_range)


def step(model):
    model.compute_language_model_loss(model.output_layer(model.decoder(torch.ones(1, 2))))
    return model.config.finalize_model_grads_func()


@pytest.mark.parametrize(("is_moe", "inner"), [(False, "MLP"), (True, "experts")])
def test_each_part_opens_its_range(is_moe, inner, ranges):
    model, optimizer = Model(is_moe), SimpleNamespace(step=lambda: "stepped")
    with named_parts([model], optimizer, ranges.open):
        assert step(model) == "finalized" and optimizer.step() == "stepped"
    assert ranges.opened == [
        "decoder, rest", "attention", inner, "output layer", "loss", "gradient reduction", "optimizer",
    ]  # fmt: skip


def test_nothing_stays_wrapped(ranges):
    model, optimizer = Model(), SimpleNamespace(step=lambda: None)
    before = schedules.backward_step, RowLoader.__next__, optimizer.step, model.config.finalize_model_grads_func
    with pytest.raises(RuntimeError, match="of a step"), named_parts([model], optimizer, ranges.open):
        assert schedules.backward_step is not before[0] and RowLoader.__next__ is not before[1]
        raise RuntimeError("of a step")
    assert before == (
        schedules.backward_step, RowLoader.__next__, optimizer.step, model.config.finalize_model_grads_func,
    )  # fmt: skip
    assert not any("forward" in vars(module) for module in model.modules())
    step(model)
    assert ranges.opened == []


def test_ranges_within_ranges_come_apart_again(ranges):
    """A run that is profiled and named for Nsight has both for some steps."""
    model, optimizer = Model(), SimpleNamespace(step=lambda: None)
    with named_parts([model], optimizer, ranges.open):
        with named_parts([model], optimizer, ranges.open):
            optimizer.step()
        optimizer.step()
    assert ranges.opened == ["optimizer"] * 3


def test_megatron_has_what_is_wrapped():
    """`named_parts` fails where a name is gone; here is what it wraps that the loop must look up at each call."""
    assert "backward_step" in schedules.forward_backward_no_pipelining.__code__.co_names
    assert "finalize_model_grads_func" in schedules.forward_backward_no_pipelining.__code__.co_names
