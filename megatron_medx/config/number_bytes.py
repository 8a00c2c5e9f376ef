"""Bytes of the numbers that a run holds: of weights, gradients, optimizer states, activations, by precision."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes per value of one `precision.dtype`, and who computes in it.

    Optimizer bytes are sharded over data parallel by the distributed optimizer.
    """

    weight: int
    """Of every parameter, trained or not."""
    gradient: int
    """Of every trained parameter: the fp32 gradient buffer."""
    optimizer: int
    """Of every trained parameter: Adam's two moments, and fp32 main weights where the weights are bf16."""
    activation: int
    """Of a value kept for the backward pass."""
    logit: int
    """Of a logit: at the output's precision, and once more in fp32 for the loss where that is bf16."""
    backend: str
    """Whose layers are assumed (activation_tables.py): fp32 is how the CPU trains, bf16 how GPUs do."""


PRECISIONS = {
    "bf16": Precision(weight=2, gradient=4, optimizer=12, activation=2, logit=6, backend="transformer_engine"),
    "fp32": Precision(weight=4, gradient=4, optimizer=8, activation=4, logit=4, backend="torch"),
}


@dataclass(frozen=True, slots=True)
class Fp8Bytes:
    """What Transformer Engine keeps per value of a layer that computes in FP8. Estimated: read in its code."""

    weight_copies: float
    """Beside each bf16 weight: it is quantized in the first microbatch of a step, along rows and along columns."""
    matrix_input: float
    """Of an input of a matrix product, instead of its bf16: only what the gradient of the weights reads is kept."""
    projection_copy: float
    """Of the input of attention's projection, beside the bf16 that attention keeps: Megatron spares it where it can."""


FP8_BYTES = {
    "delayed": Fp8Bytes(weight_copies=2, matrix_input=1, projection_copy=1),
    "tensorwise": Fp8Bytes(weight_copies=2, matrix_input=1, projection_copy=0),
    # An fp32 scale for each 128 values of an input; of a weight, for each 128 x 128.
    "blockwise": Fp8Bytes(weight_copies=2 + 2 * 4 / 128**2, matrix_input=1 + 4 / 128, projection_copy=0),
}
"""`precision.fp8` -> bytes.

Sources: TransformerEngine 2.20 pytorch/module/{base,linear,layernorm_linear}.py (quantize_weight, update_usage before
save_for_backward), megatron-core 0.19.2 core/transformer/attention.py (set_save_original_input but for `delayed`).
"""
