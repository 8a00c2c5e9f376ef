"""SwiGLU and RMS norm of the CPU beside Megatron's and torch's, forward and backward."""

import pytest
import torch
from megatron.core.transformer import mlp
from torch.nn.functional import rms_norm, silu

from megatron_medx.models.torch_kernels import rms_norm_cpu, swiglu, use_torch_swiglu, weighted_swiglu


def with_gradients(function, *inputs):
    """Output of a function and the gradients of its inputs, for one same gradient of the output."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    torch.manual_seed(3)
    out.backward(torch.randn_like(out))
    return out.detach(), *(x.grad for x in inputs)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 1, 6), (5, 18), (0, 4)])
def test_swiglu_is_the_unfused_one_bit_for_bit(shape, dtype):
    def unfused(x):  # Megatron's glu: offset included
        gate, linear = x.chunk(2, dim=-1)
        return silu(gate) * (linear + 0.0)

    x = torch.randn(shape).to(dtype)
    ours, theirs = (with_gradients(function, x) for function in (lambda x: swiglu(x, None), unfused))
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_swiglu_of_experts_weighs_tokens():
    x, weights = torch.randn(5, 8), torch.rand(5, 1)
    ours = with_gradients(lambda x, w: weighted_swiglu(x, None, w), x, weights)
    theirs = with_gradients(lambda x, w: swiglu(x, None) * w, x, weights)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_megatron_looks_them_up_where_they_are_put(monkeypatch):
    for name in ("bias_swiglu_impl", "weighted_bias_swiglu_impl"):
        monkeypatch.setattr(mlp, name, getattr(mlp, name))  # raises where a name is gone; put back at the end
    use_torch_swiglu()
    assert (mlp.bias_swiglu_impl, mlp.weighted_bias_swiglu_impl) == (swiglu, weighted_swiglu)
    assert {"bias_swiglu_impl", "weighted_bias_swiglu_impl"} <= set(mlp.MLP.forward.__code__.co_names)


@pytest.mark.parametrize("shape", [(7, 1, 6), (5, 3, 64), (11, 72), (0, 1, 8)])
def test_rms_norm_is_torchs(shape):
    x, weight = torch.randn(shape), torch.randn(shape[-1])
    ours = with_gradients(lambda x, w: rms_norm_cpu(x, w, 1e-6), x, weight)
    theirs = with_gradients(lambda x, w: rms_norm(x, w.shape, w, 1e-6), x, weight)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=2e-6)


def test_rms_norm_has_the_gradient_of_its_values():
    x, weight = torch.randn(4, 3, 10, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: rms_norm_cpu(x, w, 1e-6), inputs)
