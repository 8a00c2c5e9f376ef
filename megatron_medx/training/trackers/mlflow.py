"""MLflow: a tracking server, or a folder as `file:PATH`."""

import dataclasses
import os
import time
from collections.abc import Mapping
from itertools import batched
from pathlib import Path

from megatron_medx.config.run import RunConfig
from megatron_medx.training.trackers.tracker import keep_id, kept_id

PARAMETERS_A_CALL, PARAMETER_CHARACTERS = 100, 6000
"""What MLflow takes at most: mlflow/utils/validation.py of 3.17, MAX_PARAMS_TAGS_PER_BATCH, MAX_PARAM_VAL_LENGTH."""

ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # MLflow 3 refuses a folder without it
    "MLFLOW_DISABLE_TELEMETRY": "true",  # a cluster tells nobody else
}
"""Set where unset, before MLflow is imported."""


class MLflow:
    """A run of `log.mlflow_experiment`, named like the run folder."""

    name = "MLflow"

    def start(self, config: RunConfig, folder: Path, first_step: int) -> None:
        """Begin the run, or go on with it by its id."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=config.log.mlflow_uri)
        if (run_id := kept_id(folder, "mlflow")) is not None:
            self._run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(config.log.mlflow_experiment)
        experiment_id = experiment.experiment_id if experiment else None
        experiment_id = experiment_id or self._client.create_experiment(config.log.mlflow_experiment)
        self._run_id = self._client.create_run(experiment_id, run_name=folder.name).info.run_id
        keep_id(folder, "mlflow", self._run_id)
        parameters = [Param(key, str(value)[:PARAMETER_CHARACTERS]) for key, value in _flat(dataclasses.asdict(config))]
        for some in batched(parameters, PARAMETERS_A_CALL):
            self._client.log_batch(self._run_id, params=some)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers in one call."""
        now_ms = int(time.time() * 1000)
        metrics = [self._metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def tell(self, step: int, name: str, text: str) -> None:
        """Send a text as a file of the run."""
        self._client.log_text(self._run_id, text, f"{name}/step_{step}.txt")

    def finish(self) -> None:
        """Mark the run as finished; all was sent as it came."""
        self._client.set_terminated(self._run_id)


def _flat(values: Mapping, prefix: str = "") -> list[tuple[str, object]]:
    """`section.field` and its value, of a configuration as plain values; what has no fields is left out."""
    flat = []
    for key, value in values.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return flat
