"""What trackers are told of a run: steps, ranks, validations, generations; each tracker the same, under one name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_medx.config.run import RunConfig
from megatron_medx.run_folder import events
from megatron_medx.training.trackers.beside import Beside
from megatron_medx.training.trackers.mlflow import MLflow
from megatron_medx.training.trackers.tensorboard import TensorBoard
from megatron_medx.training.trackers.tracker import (
    Tracker,
    generations_name,
    rank_values,
    step_values,
    validation_values,
)
from megatron_medx.training.trackers.wandb import WeightsAndBiases


class Trackers:
    """The trackers that a run has; of the reporting rank.

    Args:
        config: the run; section `log` says which.
        folder: run folder.
        announce: shows people a line.
    """

    def __init__(self, config: RunConfig, folder: Path, announce: Callable[[str], None]):
        self._folder, self._announce = folder, announce
        self._all = [Beside(tracker, config, folder, self._failed) for tracker in trackers_of(config)]

    def log_step(self, line: Mapping) -> None:
        """Tell of a line of metrics.jsonl."""
        self._log(line["step"], step_values(line))

    def log_ranks(self, line: Mapping) -> None:
        """Tell of a line of ranks.jsonl."""
        self._log(line["step"], rank_values(line))

    def log_validation(self, line: Mapping) -> None:
        """Tell of a line of validation.jsonl."""
        self._log(line["step"], validation_values(line))

    def tell_generation(self, line: Mapping) -> None:
        """Tell of a line of generations.jsonl, as a text."""
        text = f"question: {line['question']}\n\nanswer: {line['answer']}\n\nexpected: {line['expected']}"
        for beside in self._all:
            beside.tell(line["step"], generations_name(line), text)

    def finish(self) -> None:
        """End all of them."""
        for beside in self._all:
            beside.finish()

    def _log(self, step: int, values: dict[str, float]) -> None:
        for beside in self._all:
            beside.log(step, values)

    def _failed(self, tracker: Tracker, why: str) -> None:
        why = " ".join(why.split())
        events.append(self._folder, "tracker_failed", tracker=tracker.name, why=why)
        self._announce(f"{tracker.name} failed and is told nothing more; the run goes on: {why}")


def trackers_of(config: RunConfig) -> list[Tracker]:
    """Those that section `log` names."""
    log = config.log
    chosen = ((log.tensorboard, TensorBoard), (log.wandb_project, WeightsAndBiases), (log.mlflow_uri, MLflow))
    return [tracker() for wanted, tracker in chosen if wanted]
