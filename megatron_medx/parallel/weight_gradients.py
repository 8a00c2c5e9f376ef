"""Weight gradients added up within the product, as Apex's CUDA extension does for Megatron, in torch.

`cpu.py` registers this module under the extension's name, so that Megatron's linears find it: they hand over inputs,
output gradients and the buffer in which the weight's gradient adds up over the microbatches of a step. Without it each
product is a new tensor, which is then added to the buffer.

Written against `LinearWithGradAccumulationAndAsyncCommunication` of megatron-core 0.19.2.
"""

from torch import Tensor

EXTENSION = "fused_weight_gradient_mlp_cuda"
"""The name that Megatron imports."""


def wgrad_gemm_accum_fp32(inputs_TI: Tensor, grads_TO: Tensor, main_grad_OI: Tensor) -> None:
    """Add grads^T inputs to a float32 buffer, in place.

    Args:
        inputs_TI: (T, I) of the linear.
        grads_TO: (T, O) of its outputs.
        main_grad_OI: (O, I) float32.
    """
    if inputs_TI.dtype == main_grad_OI.dtype:
        main_grad_OI.addmm_(grads_TO.t(), inputs_TI)
    else:
        main_grad_OI.add_(grads_TO.t() @ inputs_TI)
