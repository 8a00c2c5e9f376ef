"""What this rank's machine is: whether it can train the run, asked once before training starts; its peaks."""

import resource
from pathlib import Path

from megatron_medx.config.precision import Fp8Machine, machine_problem
from megatron_medx.config.problems import raise_problems
from megatron_medx.config.profiling import gpu_recording_problems
from megatron_medx.config.run import RunConfig
from megatron_medx.planner.hardware import peak_bf16_flops
from megatron_medx.planner.refusal import memory_problem


def check_machine(config: RunConfig) -> None:
    """Refuse FP8 where libraries or GPU of this rank cannot compute in it, and a grid that its GPU cannot hold.

    And what only a GPU can record.

    Raises:
        ConfigError, ParallelismError: with what there is and what is needed.
    """
    problems = []
    if config.precision.fp8 != "none":
        problems.append(machine_problem(config.precision.fp8, fp8_machine()))
    gpu_bytes = gpu_memory_bytes()
    problems += gpu_recording_problems(config) if gpu_bytes is None else [memory_problem(config, gpu_bytes)]
    raise_problems([problem for problem in problems if problem is not None])


def gpu_memory_bytes() -> int | None:
    """Memory of this rank's GPU; None where there is none: what a rank on a CPU may take nobody states."""
    import torch

    return torch.cuda.get_device_properties().total_memory if torch.cuda.is_available() else None


def gpu_peak_flops() -> float | None:
    """Dense bf16 peak of this rank's GPU, FLOP/s; None without one, or where its peak is stated nowhere."""
    import torch

    return peak_bf16_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def peak_memory_bytes() -> int:
    """Most memory that this rank has held since it started: allocated on its GPU, or of its process without one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, where ru_maxrss is in bytes; that of Linux has the parent's share in it
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def fp8_machine() -> Fp8Machine:
    """What torch and Megatron find here; Transformer Engine counts where Megatron could import it."""
    import torch
    from megatron.core.extensions.transformer_engine import HAVE_TE
    from megatron.core.utils import get_te_version

    return Fp8Machine(
        engine=str(get_te_version()) if HAVE_TE else None,
        capability=torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        cuda=torch.version.cuda,
    )
