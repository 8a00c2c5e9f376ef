"""Better grids for the same run: of all legal ones that fit memory, those with the shortest predicted step.

The global batch, and so what is trained, stays the same. Legal grids are estimated by their mean row, tried against
memory from the fastest on, and the few that fit first are played through.
"""

from dataclasses import dataclass
from math import gcd

from megatron_medx.config.parameters import parameter_counts
from megatron_medx.config.run import ParallelSection, RunConfig
from megatron_medx.planner.fitting import fits
from megatron_medx.planner.grids import WeightsOf, legal_grids, recomputations, with_grid
from megatron_medx.planner.hardware import Hardware
from megatron_medx.planner.row_time import row_parts, total
from megatron_medx.planner.step_time import Prediction, estimate_s, predict
from megatron_medx.planner.workload import Workload

PLAYED = 12
"""Grids that are played through; their estimates lie within some percent of one another."""

MOST_GPUS = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """A grid that fits."""

    config: RunConfig
    prediction: Prediction


def best_grids(config: RunConfig, workload: Workload, hardware: Hardware) -> list[Found]:
    """Return the fastest grids of `parallel.world_size` GPUs that fit memory, the fastest first; none if none fits."""
    limit = hardware.memory_bytes - hardware.spare_bytes
    estimates = [
        (estimate_s(candidate, workload, hardware), number, candidate)
        for number, grid in enumerate(
            legal_grids(config, hardware.gpus_per_node, _weights_of(config, workload, hardware))
        )
        for candidate in (with_grid(config, grid, recompute) for recompute in recomputations(config))
    ]
    hopeless: set[int] = set()
    found: list[Found] = []
    for _, number, candidate in sorted(estimates, key=lambda entry: entry[:2]):
        if number in hopeless:
            continue
        if fits(candidate, limit):
            found.append(Found(candidate, predict(candidate, workload, hardware)))
        elif not fits(with_grid(candidate, candidate.parallel, recomputations(config)[0]), limit):
            hopeless.add(number)
        if len(found) == PLAYED:
            break
    return sorted(found, key=lambda entry: entry.prediction.step_s)


def fewest_gpus(config: RunConfig, hardware: Hardware) -> RunConfig | None:
    """Return the run on the smallest power of two of GPUs that a legal grid fits on; None where 4,096 are too few."""
    limit = hardware.memory_bytes - hardware.spare_bytes
    gpus = 1
    while gpus <= MOST_GPUS:
        # every weight lies somewhere, in two bytes
        if 2 * sum(parameter_counts(config.model).values()) <= gpus * limit:
            asked = with_grid(config, ParallelSection(world_size=gpus))
            for grid in legal_grids(asked, hardware.gpus_per_node):
                candidate = with_grid(asked, grid, recomputations(asked)[0])
                if fits(candidate, limit):
                    return candidate
        gpus *= 2
    return None


def _weights_of(config: RunConfig, workload: Workload, hardware: Hardware) -> WeightsOf:
    """What tower and output layer take, in decoder layers, with every recomputation that is tried.

    Experts are taken to be dealt over a node, since it is not known yet over how many ranks they will be.
    """
    expert = gcd(config.model.num_experts, hardware.gpus_per_node) if config.model.is_moe else 1

    def weights_of(tensor: int, context: int) -> list[tuple[float, float]]:
        world = tensor * context * hardware.gpus_per_node
        shared = ParallelSection(world_size=world, tensor=tensor, context=context, expert=expert)
        weights = [(0.0, 0.0)]
        for recompute in recomputations(config):
            parts = row_parts(with_grid(config, shared, recompute), workload.mean, hardware)
            layer, first, last = (sum(total(part)) for part in (parts.fp8_layer, parts.first, parts.last))
            weights.append((first / layer, last / layer))
        return weights

    return weights_of
