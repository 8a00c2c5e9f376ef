"""From the words of `medx plan` to a plan: which grid, whether it fits, what it takes, which would be better."""

from dataclasses import dataclass

from megatron_medx.config.checks import check
from megatron_medx.config.problems import raise_problems
from megatron_medx.config.run import RunConfig
from megatron_medx.planner.hardware import H100, Hardware
from megatron_medx.planner.refusal import memory_problem, no_grid_problem
from megatron_medx.planner.report import plan_report
from megatron_medx.planner.search import best_grids
from megatron_medx.planner.step_time import Prediction, predict
from megatron_medx.planner.workload import Assumption, run_workload


@dataclass(frozen=True, slots=True)
class Plan:
    """What `medx plan` shows."""

    config: RunConfig
    report: dict
    prediction: Prediction


def make_plan(
    config: RunConfig,
    grid_from: str = "",
    assumption: Assumption | None = None,
    hardware: Hardware = H100,
) -> Plan:
    """Return the plan of a run.

    Args:
        config: recipe with overrides.
        grid_from: who chose its grid, in words; empty: nobody has, the search is to choose one for
            `parallel.world_size` GPUs.
        assumption: what rows hold, in place of the data folder or of the default assumption.
        hardware: ceilings.

    Raises:
        ParallelismError: the grid is not legal or does not fit memory, or no grid of so many GPUs is and does; the
            message names the nearest thing that works.
        ConfigError: something else is wrong with the run.
        DataError: the data folder is there and cannot be read.
    """
    if grid_from:
        check(config)
        raise_problems([problem] if (problem := memory_problem(config, hardware.memory_bytes)) else [])
    workload = run_workload(config, assumption)
    found = best_grids(config, workload, hardware)
    if not grid_from:
        raise_problems([] if found else [no_grid_problem(config, workload, hardware)])
        config, grid_from = found[0].config, "the fastest that the search found"
        check(config)
    prediction = predict(config, workload, hardware)
    report = plan_report(config, workload, prediction, found, hardware, grid_from)
    return Plan(config, report, prediction)
