"""The ceilings that a prediction rests on, each with its unit and its source.

A number whose source begins with `assumed` was measured nowhere: `python -m benchmarks.gpu` measures what should stand
there. A share is of the ceiling above it.
"""

from dataclasses import dataclass, field, fields
from typing import NamedTuple

ASSUMED = "assumed, to be calibrated by benchmarks/gpu.py"

DATA_SHEET = "NVIDIA H100 SXM data sheet, dense"

CALIBRATED = (
    "calibrated to one published number: Qwen3-8B, 16 H100, 4,096 tokens, bf16, 513 TFLOP/s a GPU "
    "(Megatron-Bridge, model verification card)"
)


def _stated(value: float, unit: str, source: str) -> float:
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A cluster of H100 SXM nodes."""

    bf16_flops: float = _stated(989.4e12, "FLOP/s", DATA_SHEET)
    fp8_flops: float = _stated(1978.9e12, "FLOP/s", DATA_SHEET)
    fp32_flops: float = _stated(66.9e12, "FLOP/s", "NVIDIA H100 SXM data sheet, without tensor cores")
    memory_bytes: float = _stated(80e9, "bytes", "NVIDIA H100 SXM data sheet")
    spare_bytes: float = _stated(8e9, "bytes", "assumed: CUDA, NCCL, temporary tensors of kernels, fragmentation")
    hbm_bytes_per_s: float = _stated(3.35e12, "bytes/s", "NVIDIA H100 SXM data sheet")
    nvlink_bytes_per_s: float = _stated(450e9, "bytes/s", "NVIDIA H100 SXM data sheet, one direction")
    infiniband_bytes_per_s: float = _stated(50e9, "bytes/s", "one 400 Gb/s adapter for each GPU, one direction")
    gpus_per_node: int = _stated(8, "GPUs", "DGX and HGX H100")
    matmul: float = _stated(0.70, "share", CALIBRATED)
    fp8_delayed: float = _stated(0.55, "share", ASSUMED)
    fp8_tensorwise: float = _stated(0.53, "share", ASSUMED)
    fp8_blockwise: float = _stated(0.45, "share", ASSUMED)
    experts: float = _stated(0.45, "share", ASSUMED)
    attention: float = _stated(0.50, "share", ASSUMED)
    tower: float = _stated(0.50, "share", ASSUMED)
    tower_attention: float = _stated(0.40, "share", ASSUMED)
    hbm: float = _stated(0.80, "share", ASSUMED)
    nvlink: float = _stated(0.75, "share", ASSUMED)
    infiniband: float = _stated(0.80, "share", ASSUMED)
    host_layer_s: float = _stated(300e-6, "s", "assumed: the host's time to launch one pass of a layer")
    message_s: float = _stated(20e-6, "s", "assumed: latency of a message")
    step_s: float = _stated(0.03, "s", "assumed: gradient norm, logging, schedule, once a step")
    uneven_images: float = _stated(1.1, "times", "config/memory.py: patches of the busiest rank over the mean")
    uneven_experts: float = _stated(1.2, "times", "assumed: tokens of the busiest expert rank over the mean")


H100 = Hardware()

PEAK_BF16_FLOPS = {"H100": H100.bf16_flops, "H200": H100.bf16_flops}
"""Part of a GPU's name -> dense bf16 peak, FLOP/s: NVIDIA's data sheets of the SXM parts, without sparsity."""


def peak_bf16_flops(device_name: str) -> float | None:
    """The peak of a GPU by the name that CUDA gives it; None where none is stated here."""
    return next((flops for part, flops in PEAK_BF16_FLOPS.items() if part in device_name), None)


class Ceiling(NamedTuple):
    """One number that a prediction rests on."""

    name: str
    value: float
    unit: str
    source: str


def ceilings(hardware: Hardware) -> list[Ceiling]:
    """Return every number of the hardware with its unit and source."""
    return [
        Ceiling(entry.name, getattr(hardware, entry.name), entry.metadata["unit"], entry.metadata["source"])
        for entry in fields(hardware)
    ]
