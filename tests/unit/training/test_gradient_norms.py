"""Norms by part: whose gradients are whose, one pass, and the total that Megatron clips by."""

import math
from types import SimpleNamespace

import pytest
import torch

GRADIENTS = {
    "vision.patch_embed.weight": [3.0, 4.0],
    "merger.final.weight": [12.0],
    "decoder.layers.0.weight": [84.0],
    "embedding.word_embeddings.weight": [0.0],
}
"""Norms 5, 12 and 84; all together 85."""


@pytest.fixture(scope="module")
def norms():
    from megatron_medx.parallel.cpu import enable_cpu_backend

    enable_cpu_backend()
    from megatron_medx.training import gradient_norms

    return gradient_norms


class Stage(torch.nn.Module):
    """Parameters of these names."""

    def named_parameters(self, *args, **kwargs):
        return self.pieces.items()


def optimizer_of(norms, frozen=()):
    """A ChainedOptimizer's interface over copies of the parameters; what was reduced, by which group."""
    stage = Stage()
    stage.pieces = {name: torch.nn.Parameter(torch.zeros(len(values))) for name, values in GRADIENTS.items()}
    norms.mark_parts(stage)
    copies = []
    for name, parameter in stage.pieces.items():
        if name.split(".")[0] in frozen:
            continue
        copy = parameter.detach().clone()
        norms.megatron_optimizer.copy_optimizer_param_metadata(copy, parameter)
        copy.grad = torch.tensor(GRADIENTS[name])
        copies.append(copy)

    def filtered(parameters, param_filter):
        return [parameter.grad for parameter in parameters if param_filter(parameter)]

    # as with experts, which have an optimizer of their own
    inner = [
        SimpleNamespace(get_parameters=lambda some=some: some, _filter_grads_for_norm=filtered)
        for some in (copies[:-1], copies[-1:])
    ]
    return SimpleNamespace(chained_optimizers=inner, get_grad_stats_parallel_group=lambda: "all ranks")


@pytest.fixture
def reduced(norms, monkeypatch):
    """Sums over ranks find one rank; what they were asked for."""
    norms.let_copies_keep_marks()
    groups = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: groups.append(group))
    return groups


def test_parts_and_total(norms, reduced):
    optimizer, parts = optimizer_of(norms), norms.PartNorms(("vision", "merger", "language"))
    parts.start_step(optimizer)
    assert parts.norm("vision") is None, "no step was clipped yet"
    assert optimizer.get_grad_norm() == pytest.approx(85.0)
    assert [parts.norm(part) for part in ("vision", "merger", "language")] == pytest.approx([5.0, 12.0, 84.0])
    assert reduced == ["all ranks"], "one sum, whatever the parts"
    parts.start_step(optimizer)
    assert parts.norm("vision") is None, "a step that is left out has none"


def test_a_frozen_part_has_no_norm(norms, reduced):
    optimizer, parts = optimizer_of(norms, frozen=("vision",)), norms.PartNorms(("merger", "language"))
    parts.start_step(optimizer)
    assert optimizer.get_grad_norm() == pytest.approx(math.hypot(12, 84))
    assert parts.norm("vision") is None and parts.norm("merger") == pytest.approx(12.0)


def test_a_tensor_stays_one(norms, reduced, monkeypatch):
    """With Transformer Engine Megatron's norm stays on the GPU, (1,), and so does ours."""
    monkeypatch.setattr(norms.clip_grads, "multi_tensor_scale_tensor_impl", lambda *args: None)
    optimizer, parts = optimizer_of(norms), norms.PartNorms(("vision", "merger", "language"))
    parts.start_step(optimizer)
    total = optimizer.get_grad_norm()
    assert total.shape == (1,) and total.item() == pytest.approx(85.0)
    assert parts.norm("merger") == pytest.approx(12.0)


def test_megatron_has_what_is_relied_on():
    """The outermost optimizer asks itself for the norm; copies of parameters are made with their marks."""
    import inspect

    from megatron.core.optimizer import distrib_optimizer
    from megatron.core.optimizer.optimizer import ChainedOptimizer, MegatronOptimizer

    assert "get_grad_norm" in ChainedOptimizer.step.__wrapped__.__code__.co_names
    assert list(inspect.signature(MegatronOptimizer._filter_grads_for_norm).parameters) == [
        "self", "params", "param_filter",
    ]  # fmt: skip
    source = inspect.getsource(distrib_optimizer.DistributedOptimizer)
    assert source.count("copy_optimizer_param_metadata(") == 3
