"""What a grid holds on its GPUs, by stage, against what a GPU has."""

from megatron_medx.config.memory import stage_memory
from megatron_medx.config.run import RunConfig


def memory_by_stage(config: RunConfig) -> list[dict[str, int]]:
    """Return bytes by kind on a rank of each pipeline stage, first to last."""
    return [stage_memory(config, stage) for stage in range(config.parallel.pipeline)]


def fits(config: RunConfig, limit_bytes: float) -> bool:
    """Return whether the worst rank of a legal grid holds at most so many bytes.

    First, second and last stage are looked at: of stages with equal layers the earlier keeps more rows' activations.
    """
    last = config.parallel.pipeline - 1
    return all(sum(stage_memory(config, stage).values()) <= limit_bytes for stage in sorted({0, min(1, last), last}))
