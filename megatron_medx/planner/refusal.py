"""What cannot fit memory is refused before GPUs are asked for, with the numbers and the nearest thing that works."""

from dataclasses import replace

from megatron_medx.config.memory import worst_rank
from megatron_medx.config.problems import Problem
from megatron_medx.config.run import RunConfig
from megatron_medx.planner.grids import overrides
from megatron_medx.planner.hardware import H100, Hardware
from megatron_medx.planner.search import best_grids, fewest_gpus
from megatron_medx.planner.workload import Assumption, Workload, assumed_workload


def memory_problem(config: RunConfig, gpu_bytes: float = H100.memory_bytes) -> Problem | None:
    """Return what is wrong with a legal grid that does not fit GPUs of so much memory; None where it fits.

    For runs on GPUs alone: how much memory a rank on a CPU has is another question.

    Args:
        config: a run whose other checks have passed.
        gpu_bytes: memory of each GPU.
    """
    worst = worst_rank(config)
    if sum(worst.values()) <= gpu_bytes:
        return None
    gpus = config.parallel.world_size
    return Problem(
        f"{_gigabytes(worst)} GB estimated on the worst rank of {gpus} GPUs = {_kinds(worst)}",
        f"at most {gpu_bytes / 1e9:.0f} GB, the memory of a GPU",
        way_out(config, assumed_workload(config, Assumption()), replace(H100, memory_bytes=gpu_bytes)),
        True,
    )


def no_grid_problem(config: RunConfig, workload: Workload, hardware: Hardware) -> Problem:
    """Return what to say where the search has found no grid of so many GPUs."""
    gpus, limit = config.parallel.world_size, hardware.memory_bytes - hardware.spare_bytes
    return Problem(
        f"{gpus} GPUs, {config.training.global_batch_rows} rows a step: no legal grid of them fits",
        f"a legal grid with at most {limit / 1e9:.0f} GB on the worst rank, "
        f"{hardware.spare_bytes / 1e9:.0f} GB less than a GPU has",
        way_out(config, workload, hardware),
        True,
    )


def way_out(config: RunConfig, workload: Workload, hardware: Hardware) -> str:
    """Return what to do: the fastest grid of as many GPUs that fits, else the fewest GPUs on which one does."""
    if found := best_grids(config, workload, hardware):
        best = found[0].config
        return f"set {overrides(best, config)}: {_gigabytes(worst_rank(best))} GB by estimate"
    if fewest := fewest_gpus(config, hardware):
        gpus = fewest.parallel.world_size
        if gpus > config.parallel.world_size:
            grid = overrides(fewest, config)
            return f"take {gpus} GPUs, the fewest (of powers of two) that a legal grid fits on: {grid}"
        return (
            f"take another number of GPUs: {gpus} would do with {overrides(fewest, config)}, "
            "or change training.global_batch_rows"
        )
    return "lower data.seq_len_tokens or data.max_pixels, or take a smaller model"


def _kinds(kinds: dict[str, int]) -> str:
    return " + ".join(f"{kind} {size / 1e9:.1f}" for kind, size in kinds.items() if size >= 5e7)


def _gigabytes(kinds: dict[str, int]) -> str:
    return f"{sum(kinds.values()) / 1e9:.1f}"
