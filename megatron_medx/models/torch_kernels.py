"""SwiGLU and RMS norm on the CPU in few passes over memory, for where Transformer Engine is not installed.

Megatron's unfused SwiGLU adds an offset of 0 to half of its input, and its backward pass joins the gradients of both
halves by a copy; its fused one needs torch.compile. Ours writes both gradients where they belong, and keeps nothing but
its input. Values are bit for bit those of the unfused one. Torch's RMS norm is one kernel on a GPU, and a dozen passes
on the CPU, forward and backward.

Written against megatron-core 0.19.2; tests/unit/models/test_torch_kernels.py pins what is relied on.
"""

import torch
from megatron.core.transformer import mlp
from torch import Tensor
from torch.nn.functional import silu


def use_torch_swiglu() -> None:
    """Let all MLPs of this process with `bias_activation_fusion` use ours; without effect when called again."""
    mlp.bias_swiglu_impl, mlp.weighted_bias_swiglu_impl = swiglu, weighted_swiglu


def swiglu(x_F: Tensor, bias: None, *unused) -> Tensor:
    """silu(first half) * second half.

    Args:
        x_F: (..., F) gate and linear part, one behind the other.
        bias: None; this network's have none.

    Returns:
        (..., F / 2).
    """
    assert bias is None, "SwiGLU of this network has no bias"
    return _SwiGLU.apply(x_F)


def weighted_swiglu(x_TF: Tensor, bias: None, weights_T1: Tensor, *unused) -> Tensor:
    """The same, each token by its router's weight: (T, F / 2) in the dtype of the input."""
    return (swiglu(x_TF, bias) * weights_T1).to(x_TF.dtype)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_F: Tensor) -> Tensor:
        ctx.save_for_backward(x_F)
        gate, linear = x_F.chunk(2, dim=-1)
        return silu(gate).mul_(linear)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x_F,) = ctx.saved_tensors
        gate, linear = x_F.chunk(2, dim=-1)
        grad_F = torch.empty_like(x_F)
        grad_gate, grad_linear = grad_F.chunk(2, dim=-1)
        # in place: temporary tensors of this size cost more than the arithmetic, for their memory is new each time
        torch.ops.aten.silu.out(gate, out=grad_linear).mul_(grad)
        torch.mul(grad, linear, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_F


def rms_norm_cpu(x_H: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean of x squared + eps) * weight, over the last dimension.

    Args:
        x_H: (..., H) float32 or float64.
        weight_H: (H,) of the same dtype.
        eps: added to the mean square.
    """
    return _RMSNorm.apply(x_H, weight_H, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_H: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x_H, dim=-1, keepdim=True).square_()
        scale = squares.div_(x_H.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_H, weight_H, scale)
        return (x_H * scale).mul_(weight_H)

    @staticmethod
    def backward(ctx, grad_H: Tensor) -> tuple[Tensor, Tensor, None]:
        """With n = x scale: d weight = sum of grad n, d x = scale (grad weight - n mean(grad weight n))."""
        x_H, weight_H, scale = ctx.saved_tensors
        normed_H = x_H * scale
        products_H = grad_H * normed_H
        rows_TH = products_H.flatten(0, -2)
        grad_weight_H = rows_TH.sum(0)
        means = (rows_TH @ weight_H).view(scale.shape).div_(x_H.shape[-1])
        grad_x_H = torch.mul(grad_H, weight_H, out=products_H)
        return grad_x_H.addcmul_(normed_H, means, value=-1).mul_(scale), grad_weight_H, None
