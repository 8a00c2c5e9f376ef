"""The tasks of a build by `datatrove`: over processes of this machine, or as jobs of a Slurm cluster."""

import sys
from dataclasses import dataclass
from pathlib import Path

import multiprocess
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.utils.logging import logger

from megatron_medx.data.builder.finish import finish_build
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.builder.task import BuildTask
from megatron_medx.errors import DataError

LOG, SLURM_LOG = "log", "slurm"
"""What datatrove keeps of its tasks: in the work folder, and of Slurm jobs in OUT, which outlives it."""

SLURM_NUMBERS = ("cpus_per_task", "mem_per_cpu_gb", "workers", "tasks_per_job", "max_array_size")
SLURM_TEXTS = ("partition", "time", "qos", "job_name", "env_command", "venv_path")
"""Arguments of datatrove's Slurm executor that `--slurm` may set; all others go to sbatch as they are."""


class _QuietExecutor(LocalPipelineExecutor):
    """datatrove's own, with its log in files alone: the screen has a progress line."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1):
        try:
            return super()._run_for_rank(rank, local_rank + 1, node_rank)  # it shows the log of local rank 0
        finally:
            logger.remove()


def run_local(task: BuildTask, num_tasks: int) -> None:
    """Do all tasks that are not done, in `workers` processes."""
    logger.remove()
    # datatrove's manager process too: a plain fork copies the locks of our threads as they happen to be
    multiprocess.set_start_method("forkserver", force=True)
    # the server from which workers are forked imports once what each of them would import for seconds
    multiprocess.get_context("forkserver").set_forkserver_preload([BuildTask.__module__])
    workers = min(task.options.workers, num_tasks)
    _QuietExecutor([task], tasks=num_tasks, workers=workers, logging_dir=str(task.work / LOG)).run()


@dataclass(frozen=True, slots=True)
class FinishBuild:
    """The last step as a task of its own, which waits for all others."""

    source: Path
    out: Path
    options: BuildOptions

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """As `datatrove` calls a step."""
        finish_build(self.source, self.out, self.options)


def submit_slurm(task: BuildTask, num_tasks: int, out: Path) -> SlurmPipelineExecutor:
    """Submit a job array for the tasks and a job behind it that merges them; returns at once.

    Raises:
        DataError: partition or time are missing, or sbatch is not there.
    """
    jobs = slurm_executors(task, num_tasks, out)
    try:
        jobs.run()
    except FileNotFoundError as error:
        raise DataError(
            "no command sbatch", "a login node of a Slurm cluster", "leave --slurm out to build on this machine"
        ) from error
    return jobs


def slurm_executors(task: BuildTask, num_tasks: int, out: Path) -> SlurmPipelineExecutor:
    """The job that merges, which depends on the one of the tasks.

    Raises:
        DataError: partition or time are missing, or a number is none.
    """
    given = dict(task.options.slurm)
    missing = [name for name in ("partition", "time") if not given.get(name)]
    if missing:
        raise DataError(
            f"--slurm without {' and '.join(missing)}",
            "partition and time, at least",
            "write for instance --slurm partition=cpu,time=04:00:00,account=med",
        )
    settings: dict = {"qos": "", "job_name": "medx-data", "venv_path": f"{sys.prefix}/bin/activate"}
    for name in [name for name in SLURM_NUMBERS if name in given]:
        value = given.pop(name)
        if not value.isdecimal():
            raise DataError(f"--slurm {name}={value}", "a whole number", f"mend {name}")
        settings[name] = int(value)
    settings |= {name: given.pop(name) for name in SLURM_TEXTS if name in given}
    settings["sbatch_args"] = given
    log = out / SLURM_LOG
    tasks = SlurmPipelineExecutor([task], tasks=num_tasks, logging_dir=str(log / "tasks"), **settings)
    finish = FinishBuild(task.source, out, task.options)
    settings |= {"job_name": f"{settings['job_name']}-merge", "workers": 1}
    return SlurmPipelineExecutor([finish], tasks=1, logging_dir=str(log / "merge"), depends=tasks, **settings)
