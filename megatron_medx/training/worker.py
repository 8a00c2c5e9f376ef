"""One rank of a run: everything that happens between the launcher and `megatron.training.pretrain`.

Started by `launch.py` on one machine, or by `srun medx train ...` on a cluster. The screen belongs to people: what
Megatron, torch and the libraries print goes to `logs/rank_<n>.log` in the run folder.
"""

import contextlib
import datetime
import errno
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from megatron_medx.config.checkpoint_folders import RUN_FILE
from megatron_medx.config.files import read_run_yaml
from megatron_medx.config.memory import checkpoint_bytes
from megatron_medx.config.run import RunConfig
from megatron_medx.config.validation import VALIDATION_FILE
from megatron_medx.errors import CheckpointError, MedxError, ParallelismError
from megatron_medx.run_folder import events
from megatron_medx.run_folder.names import ERROR_FILE, LOGS, METRICS_FILE, rank_log
from megatron_medx.training.interruption import (
    LAUNCHER,
    Hurried,
    Interruption,
    SignalListener,
    StartAgain,
    block_signals,
    die_with,
    first_step_teller,
    last_launch,
    tell_of_failure,
)
from megatron_medx.training.start import starting_weights
from megatron_medx.training.watchdog import Watchdog

USER_ERROR = 2
"""Exit code of a run that stopped for something its user can mend."""


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m megatron_medx.training.worker RUN_FOLDER [--resume]`: train as the rank that RANK says."""
    block_signals()
    if LAUNCHER in os.environ:
        die_with(int(os.environ[LAUNCHER]))
    words = list(sys.argv[1:] if argv is None else argv)
    folder = Path(words[0])
    return run_rank(read_run_yaml(folder / RUN_FILE), folder, resume="--resume" in words)


def run_rank(config: RunConfig, folder: Path, resume: bool) -> int:
    """Train as one rank; returns the exit code of this process."""
    listener = SignalListener()
    listener.start()
    screen = redirect_output(folder / LOGS / rank_log(int(os.environ["RANK"])))
    try:
        return train(config, folder, resume, screen, listener)
    except StartAgain as end:
        if is_reporter(config):
            _say(screen, str(end))
        return events.AGAIN
    except BaseException as error:  # torch's CheckpointException is no Exception
        mendable = error if isinstance(error, MedxError) else as_user_error(error, config, folder)
        tell_of_failure(mendable or error, folder)
        if mendable is None:
            raise
        report_once(folder, str(mendable), screen)
        return USER_ERROR


def train(config: RunConfig, folder: Path, resume: bool, screen: TextIO, listener: SignalListener) -> int:
    """Set this process up, hand it to Megatron, and end well; the exit code."""
    launched_s, steps_done = last_launch(folder)
    rank, reports = int(os.environ["RANK"]), is_reporter(config)
    watchdog = Watchdog(config.survival, folder, rank, steps_done, lambda line: _say(screen, f"\n{line}"))
    watchdog.start()
    # Imports wait until output is redirected and the CPU backend has set its environment.
    set_up_backend(config, screen)

    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import pretrain_cfg_container_from_args

    from megatron_medx.models.specs import transformer_engine_usable
    from megatron_medx.training import hooks, survival_hooks, validation_hooks
    from megatron_medx.training.bad_steps import BadStepGuard
    from megatron_medx.training.exports import Exporter, finish_together
    from megatron_medx.training.keeper import CheckpointKeeper
    from megatron_medx.training.loss import StepLosses
    from megatron_medx.training.machine import check_machine
    from megatron_medx.training.monitor import StepMonitor
    from megatron_medx.training.profiling import out_of_memory, recorder
    from megatron_medx.training.providers import make_dataset_provider, make_model_provider
    from megatron_medx.training.step import make_forward_step

    check_machine(config)
    use_transformer_engine = transformer_engine_usable()
    arguments = parse_megatron_arguments(config, folder, resume, use_transformer_engine)
    monitor, losses = StepMonitor(config, folder, screen if reports else None), StepLosses()
    validation = validation_hooks.set_up(config, folder, monitor, losses)
    exporter = Exporter(config, folder, monitor) if reports and config.checkpoint.export_every_steps else None
    keeper = CheckpointKeeper(config, folder, monitor, exporter) if reports else None
    followers = [follower for follower in (exporter, keeper) if follower is not None]
    interruption = Interruption(listener, folder, config.training.steps, reports)
    survival_hooks.install(interruption, watchdog, first_step_teller(folder, launched_s) if reports else None)
    hooks.install(config, folder, resume, monitor, losses, BadStepGuard(config, folder, losses, monitor), followers)
    recorder.install(config, folder, monitor)
    try:
        for follower in followers:
            follower.catch_up()
        with _ending_early(), out_of_memory.explained(config, folder, lambda text: report_once(folder, text, screen)):
            pretrain(
                pretrain_cfg_container_from_args(arguments),
                make_dataset_provider(config, monitor.watch, validation),
                ModelType.encoder_or_decoder,
                make_forward_step(config, losses),
                model_provider=make_model_provider(config, use_transformer_engine),
            )
        watchdog.still_ending()
        interruption.tell_at_once()
        finishers = [Hurried(keeper)] if keeper and interruption.by_signal else followers
        finish_together(finishers, watchdog.still_ending)
    finally:
        watchdog.stop()
        monitor.close()
        for follower in followers:
            follower.stop()
    if reports:
        draw(folder)
    return interruption.end()


def set_up_backend(config: RunConfig, screen: TextIO) -> None:
    """Threads and, without a GPU, the patches of Megatron; rank 0 says so."""
    from megatron_medx.parallel.cpu import cpu_backend_needed, enable_cpu_backend

    if cpu_backend_needed():
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.parallel.world_size))
    speaks = os.environ["RANK"] == "0"
    enable_cpu_backend(announce=lambda line: _say(screen, line) if speaks else None)


def is_reporter(config: RunConfig) -> bool:
    """Whether this rank is the one that tells and writes: the last one, which has the loss."""
    return int(os.environ["RANK"]) == config.parallel.world_size - 1


def draw(folder: Path) -> None:
    """Picture of the run so far, when it has done a step."""
    from megatron_medx.training.loss_curve import draw_loss_curve
    from megatron_medx.training.step_lines import read_metrics

    if metrics := read_metrics(folder / METRICS_FILE):
        draw_loss_curve(metrics, folder / "loss.png", read_metrics(folder / VALIDATION_FILE))


@contextlib.contextmanager
def _ending_early() -> Iterator[None]:
    """What Megatron does when it stops before the last step, saved and well: it exits with code 0."""
    try:
        yield
    except SystemExit as end:
        if end.code:
            raise


def parse_megatron_arguments(config: RunConfig, folder: Path, resume: bool, use_transformer_engine: bool):
    """Megatron's namespace for this run, derived and validated by Megatron's own parser."""
    import argparse

    import torch
    from megatron.training.arguments import add_megatron_arguments, parse_and_validate_args

    from megatron_medx.training.megatron_args import command_line, settings

    ours = settings(
        config,
        folder=folder,
        resume=resume,
        start=None if resume else starting_weights(config, folder),
        use_cuda=torch.cuda.is_available(),
        use_transformer_engine=use_transformer_engine,
    )
    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    # Megatron reads sys.argv alone, so this process's own arguments give way for good.
    sys.argv = [sys.argv[0], *command_line(parser, ours | config.megatron)]
    return parse_and_validate_args()


def redirect_output(log: Path) -> TextIO:
    """Send this process's stdout and stderr to `log`, also that of libraries; returns the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    screen = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, sys.stdout.fileno())
    os.dup2(target, sys.stderr.fileno())
    os.close(target)
    sys.stdout.write(f"=== started {datetime.datetime.now().isoformat(timespec='seconds')} ===\n")
    return screen


def report_once(folder: Path, message: str, screen: TextIO) -> None:
    """Show an error that several ranks may meet; the first one to meet it speaks."""
    try:
        with open(folder / LOGS / ERROR_FILE, "x") as file:
            file.write(message + "\n")
    except FileExistsError:
        return
    except OSError:  # the disk is full: better said by every rank than by none
        pass
    _say(screen, f"\n{message}")


def as_user_error(error: BaseException, config: RunConfig, folder: Path) -> MedxError | None:
    """What of the libraries' errors a user can mend: a full disk, a port that is taken; None for all others.

    A full disk has an error number, or is a failed save without room for another (torch drops the number).
    """
    failed_save = type(error).__name__ == "CheckpointException"
    no_room = failed_save and shutil.disk_usage(folder).free < checkpoint_bytes(config)
    if no_room or getattr(error, "errno", None) == errno.ENOSPC:
        return CheckpointError(
            f"no space left on the disk of {folder} while writing",
            "room for one more checkpoint; the last complete one is intact and is the one that resuming uses",
            f"free space, then: medx train {folder}/run.yaml --resume",
        )
    if "EADDRINUSE" in str(error):
        return ParallelismError(
            f"port {os.environ['MASTER_PORT']} was taken by another process before rank 0 listened on it",
            "a free port on which the ranks meet",
            "start again, or set MASTER_PORT to a port that is kept free",
        )
    return None


def _say(screen: TextIO, line: str) -> None:
    screen.write(line + "\n")
    screen.flush()


if __name__ == "__main__":  # saving spawns processes that import this module
    sys.exit(main())
