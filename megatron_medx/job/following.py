"""What follows a job step: the verdict on it, written to the run's events and, at the end, the lock given back."""

import os
from pathlib import Path

from megatron_medx.config.checkpoint_folders import RUN_FILE
from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.run import SurvivalSection
from megatron_medx.job.verdict import JobFacts, Verdict, judge_launch, judge_preflight
from megatron_medx.run_folder import events, lock
from megatron_medx.run_folder.progress import last_step


def follow(folder: Path, step: str, code: int, scontrol: str, restart: int) -> Verdict:
    """Judge a job step that ended and write down what was decided; a job that ends by itself gives the folder back.

    Args:
        folder: of the run, which this job holds.
        step: `launch` or `preflight`.
        code: exit code of its srun.
        scontrol: what Slurm says about the job; empty where it cannot be asked.
        restart: SLURM_RESTART_COUNT.

    Raises:
        ConfigError: the run.yaml cannot be read.
    """
    job = JobFacts.read(scontrol)
    if step == "preflight":
        verdict = judge_preflight(code, job, restart)
    else:
        survival = read_run_yaml(folder / RUN_FILE).survival if (folder / RUN_FILE).exists() else SurvivalSection()
        happened = events.read(folder)
        verdict = judge_launch(happened, code, last_step(folder), survival.max_failures, job, restart)
    number = os.environ.get("SLURM_JOB_ID", "")
    for event, facts in verdict.events:
        events.append(folder, event, **facts)
    if verdict.word == "requeue":
        events.append(folder, "job_requeued", job=number, why=verdict.why)
    elif verdict.word != "again":
        events.append(folder, "job_ended", job=number, code=verdict.code, why=verdict.why)
        if job.state == "RUNNING":  # else ranks may still write; the lock dies with the job
            lock.release(folder)
    return verdict
