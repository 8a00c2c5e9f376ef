"""Whether this rank's machine can train the run: asked once, before training starts."""

from megatron_medx.config.precision import Fp8Machine, machine_problem
from megatron_medx.config.problems import raise_problems
from megatron_medx.config.run import RunConfig
from megatron_medx.planner.refusal import memory_problem


def check_machine(config: RunConfig) -> None:
    """Refuse FP8 where libraries or GPU of this rank cannot compute in it, and a grid that its GPU cannot hold.

    Raises:
        ConfigError, ParallelismError: with what there is and what is needed.
    """
    problems = []
    if config.precision.fp8 != "none":
        problems.append(machine_problem(config.precision.fp8, fp8_machine()))
    if (gpu_bytes := gpu_memory_bytes()) is not None:
        problems.append(memory_problem(config, gpu_bytes))
    raise_problems([problem for problem in problems if problem is not None])


def gpu_memory_bytes() -> int | None:
    """Memory of this rank's GPU; None where there is none: what a rank on a CPU may take nobody states."""
    import torch

    return torch.cuda.get_device_properties().total_memory if torch.cuda.is_available() else None


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
