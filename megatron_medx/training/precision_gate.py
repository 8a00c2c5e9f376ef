"""The precision gate: the first steps of a run in FP8 and in bf16, before the run itself.

Two trials, each in a folder of its own below RUN/precision_gate, start from the run's weights and see its rows in its
order, at its learning rates. They differ in section `precision` alone and save nothing. Then their losses are compared
(gate_verdict.py): a run whose FP8 loses too much is refused before its first step. FP8 is tried first, since what it
lacks on a machine is known in seconds.

Who calls says how a trial's ranks are run: launch.py on this machine, slurm_task.py as tasks of srun. torch is not
imported here.
"""

import copy
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from megatron_medx.config.checkpoint_folders import RUN_FILE
from megatron_medx.config.run import PrecisionSection, RunConfig
from megatron_medx.errors import ConfigError
from megatron_medx.run_folder import events
from megatron_medx.run_folder.events import AGAIN, INTERRUPTED
from megatron_medx.run_folder.names import DATA, GATE, GATE_FILE, GATE_PICTURE, METRICS_FILE
from megatron_medx.terminal import complain, say
from megatron_medx.training.gate_verdict import draw, judge, refuse
from megatron_medx.training.local_ranks import Ending
from megatron_medx.training.prepare_run import holds_checkpoint
from megatron_medx.training.start import prepare_start, starting_weights

METRICS_PATIENCE_S = 60.0
"""Seconds that lines of metrics.jsonl may take from another node's rank to here."""

FP8, BF16 = "fp8", "bf16"
"""Names of the trials, and of their folders."""


def precisions(config: RunConfig) -> dict[str, PrecisionSection]:
    """What each trial computes in, in the order in which they are made: first the one that is judged."""
    return {FP8: replace(config.precision), BF16: PrecisionSection(dtype=config.precision.dtype)}


def gate_is_due(config: RunConfig, resume: bool, auto_resume: bool) -> bool:
    """Whether the gate has to be passed now: it is asked for, and the run has not begun behind it.

    Args:
        config: with the run's folder.
        resume, auto_resume: of the launch.

    Raises:
        ConfigError: the run goes on from a checkpoint and has not passed the gate of its precision.
    """
    if not config.precision.gate_steps:
        return False
    if not (resume or auto_resume):
        return True
    has_passed = _has_passed(config)
    if holds_checkpoint(config):
        if has_passed:
            return False
        raise ConfigError(
            f"{config.run_folder} goes on from a checkpoint, and no {GATE_FILE} says that its precision passed",
            "a gate that was passed before the first step: it trains the first steps of a run",
            "set precision.gate_steps=0 to go on without, or start a new run with "
            f"checkpoint.start_from={config.run_folder} and another run.folder",
        )
    if resume:
        return False  # the launch refuses it: there is nothing to resume
    return not (has_passed and (config.run_folder / RUN_FILE).exists())


def _has_passed(config: RunConfig) -> bool:
    """Whether a gate was held for this precision and its gap is within the bound of now."""
    path = config.run_folder / GATE_FILE
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"gap": None}
    if record["gap"] is None or record["gap"] > config.precision.gate_max_gap:
        return False
    return _computed_in(record["precision"]) == _computed_in(asdict(config.precision))


def _computed_in(section: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in section.items() if not key.startswith("gate_")}


def hold_gate(
    config: RunConfig,
    run_trial: Callable[[RunConfig], Ending],
    sections: Mapping[str, PrecisionSection] | None = None,
) -> Ending:
    """Train the trials, compare them, write the record and the picture.

    Args:
        config: of the run, with its folder, which is not prepared yet.
        run_trial: prepares the folder of a trial, runs its ranks and waits for them.
        sections: name -> precision of two trials, the one that is judged and the one that it is measured by; None for
            `precisions`.

    Returns:
        Code 0 where the gate was passed, else the ending of the trial that did not end well.

    Raises:
        ConfigError: the losses are further apart than `precision.gate_max_gap`.
    """
    folder, steps = config.run_folder, config.precision.gate_steps
    shutil.rmtree(folder / GATE, ignore_errors=True)
    for name in (GATE_FILE, GATE_PICTURE):
        (folder / name).unlink(missing_ok=True)
    start, metrics = _start(config), {}
    for name, section in (sections or precisions(config)).items():
        trial = trial_config(config, name, section, start)
        say(f"precision gate: the first {counted_steps(steps)} in {name}")
        ending = run_trial(trial)
        if ending.code:
            return ending
        metrics[name] = _metrics(trial.run_folder / METRICS_FILE, steps)
    record = {"precision": asdict(config.precision), **judge(metrics, steps, config.precision.gate_max_gap)}
    (folder / GATE_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, folder / GATE_PICTURE)
    for name in metrics:
        shutil.rmtree(folder / GATE / name / DATA)  # tables for the order of rows, which each launch makes anew
    told = {key: record[key] for key in ("passed", "gap", "max_gap", "steps")}
    events.append(folder, "precision_gate", **told)
    refuse(record, folder, config.precision)
    say(f"precision gate passed: {record['why']}; {folder / GATE_PICTURE}")
    return Ending(0)


def trial_config(config: RunConfig, name: str, section: PrecisionSection, start: str) -> RunConfig:
    """The run as a trial: its first steps at its own rates, in another folder and precision, nothing saved.

    Megatron's `exit_interval` ends it; with fewer `training.steps` the schedule of learning rates would be another.

    Args:
        start: what `_start` found.
    """
    trial = copy.deepcopy(config)
    trial.run.folder = str(config.run_folder / GATE / name)
    trial.precision = replace(section, gate_steps=0)
    trial.checkpoint.start_from = start
    trial.checkpoint.async_save, trial.checkpoint.export_every_steps = False, 0
    trial.training.validate_every_steps = 0
    trial.training.profile, trial.training.nvtx = "", False
    if trial.training.on_bad_loss == "rollback":
        trial.training.on_bad_loss = "skip"  # there is no checkpoint to go back to
    trial.log = replace(config.log, tensorboard=False, wandb_project="", mlflow_uri="")
    trial.megatron |= {"save": None, "save_interval": None, "exit_interval": config.precision.gate_steps}
    return trial


def _metrics(path: Path, steps: int) -> list[dict]:
    """The lines of a trial's metrics; of a rank on another node the last ones may appear here a little later."""
    deadline = time.monotonic() + METRICS_PATIENCE_S
    while True:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        if len(whole) >= steps or time.monotonic() > deadline:
            return whole
        time.sleep(0.1)


def _start(config: RunConfig) -> str:
    """The folder with tensors that all trials start from; a Hugging Face directory is converted once, for the run."""
    if not config.checkpoint.start_from:
        return ""
    meant = copy.deepcopy(config)
    prepare_start(meant, config.run_folder)
    return str(starting_weights(meant, config.run_folder))


def end_without_a_verdict(ending: Ending, folder: Path) -> int:
    """Record why there is no verdict; the exit code.

    Args:
        ending: of a trial, not 0.
        folder: of the run.
    """
    if ending.code == INTERRUPTED:
        say("interrupted before the first step: the precision gate begins anew when the run is started again")
        return INTERRUPTED
    why = "a trial of the precision gate " + ("hung" if ending.code == AGAIN else f"failed: {ending.why}")
    complain(f"{why}; its logs are below {folder / GATE}")
    events.append(folder, "failed", step=None, code=ending.rank_code, rank=None, why=why)
    return 1 if ending.code == AGAIN else ending.code


def counted_steps(number: int) -> str:
    """`1 step`, `200 steps`."""
    return f"{number:,} step{'' if number == 1 else 's'}"
