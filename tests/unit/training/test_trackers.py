"""Trackers: the same names in all of them, read back from what they leave; one that fails ends alone."""

import io
import json
import threading

import pytest

from megatron_medx.recipes import get_recipe
from megatron_medx.run_folder import events
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.trackers import beside as the_module
from megatron_medx.training.trackers.beside import Beside
from megatron_medx.training.trackers.mlflow import MLflow
from megatron_medx.training.trackers.tensorboard import TensorBoard
from megatron_medx.training.trackers.told import Trackers
from megatron_medx.training.trackers.tracker import generations_name, rank_values, step_values, validation_values
from megatron_medx.training.trackers.wandb import WeightsAndBiases

STEP_LINE = {
    "step": 3, "loss": 2.5, "grad_norm": None, "lr_vision": 1e-4, "source_tokens": {"reports": 30, "a:b": 10},
    "mfu": None, "skipped": True,
}  # fmt: skip
VALIDATION_LINE = {
    "step": 2, "set": "chest", "loss": 1.5, "accuracy": None, "by_source": {"mimic": {"loss": 1.25, "tokens": 9}},
}  # fmt: skip
RANKS_LINE = {"step": 3, "busy_s": [1.0, 4.0, 2.0]}
GENERATION = {"step": 2, "set": "chest", "sample_id": "q 1", "question": "What?", "answer": "<b>", "expected": "Yes."}

SCALARS = {
    "train/loss": [(3, 2.5)],
    "train/lr_vision": [(3, 1e-4)],
    "train/source_tokens/reports": [(3, 30.0)],
    "train/source_tokens/a_b": [(3, 10.0)],
    "ranks/busy_s/max": [(3, 4.0)],
    "ranks/busy_s/median": [(3, 2.0)],
    "validation/chest/loss": [(2, 1.5)],
    "validation/chest/by_source/mimic": [(2, 1.25)],
}
"""What the lines above are in each tracker: name -> (step, value)."""

TEXT = "validation/chest/generations/q 1"


def run_of(folder, **log):
    """A configuration and its run folder."""
    config = get_recipe("demo")
    for key, value in {"tensorboard": False, **log}.items():
        setattr(config.log, key, value)
    folder.mkdir(exist_ok=True)
    return config, folder


def tell_all(config, folder):
    """One launch that tells of everything, the validation after a later step; what people saw."""
    screen = []
    trackers = Trackers(config, folder, screen.append)
    trackers.log_step(STEP_LINE)
    trackers.log_ranks(RANKS_LINE)
    trackers.log_validation(VALIDATION_LINE)
    trackers.tell_generation(GENERATION)
    trackers.finish()
    return screen


def test_lines_become_names_and_numbers():
    assert step_values(STEP_LINE) | rank_values(RANKS_LINE) | validation_values(VALIDATION_LINE) == {
        name: value for name, [(_, value)] in SCALARS.items()
    }
    assert generations_name(GENERATION) == TEXT


def test_tensorboard_has_them_and_shows_repeated_steps_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, folder = run_of(tmp_path / "run", tensorboard=True)
    for _ in range(2):
        assert tell_all(config, folder) == []
    events_read = EventAccumulator(str(folder / "tensorboard"))
    events_read.Reload()
    found = {name: events_read.Scalars(name) for name in events_read.Tags()["scalars"]}
    expected = {name: [(step, pytest.approx(value))] for name, [(step, value)] in SCALARS.items()}
    # only what is older than the first step of the second launch is told twice here
    last = {name: [(told[-1].step, told[-1].value)] for name, told in found.items()}
    assert last == expected and len(found["train/loss"]) == 1
    assert f"{TEXT}/text_summary" in events_read.Tags()["tensors"]


def test_mlflow_has_them_and_a_resume_goes_on_with_its_run(tmp_path):
    config, folder = run_of(tmp_path / "run", mlflow_uri=f"file:{tmp_path / 'store'}", mlflow_experiment="small")
    assert tell_all(config, folder) == []
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=config.log.mlflow_uri)
    experiment = client.get_experiment_by_name("small")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert json.loads((folder / "trackers.json").read_text()) == {"mlflow": run.info.run_id}
    assert run.data.params["optimizer.lr"] == str(config.optimizer.lr)
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert {name: [(one.step, one.value) for one in told] for name, told in history.items()} == SCALARS
    assert [entry.path for entry in client.list_artifacts(run.info.run_id, TEXT)] == [f"{TEXT}/step_2.txt"]
    assert tell_all(config, folder) == []
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 2


def test_wandb_has_them_offline_and_a_resume_goes_on_with_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(the_module, "FINISH_PATIENCE_S", 120.0)
    config, folder = run_of(tmp_path / "run", wandb_project="small")
    for _ in range(2):
        assert tell_all(config, folder) == []
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    run_id = json.loads((folder / "trackers.json").read_text())["wandb"]
    assert len(files) == 2 and {file.stem for file in files} == {f"run-{run_id}"}
    for file in files:
        found = {name: told for name, told in offline_values(file).items() if not name.startswith(TEXT)}
        assert found == {name: [(step, pytest.approx(value))] for name, [(step, value)] in SCALARS.items()}


def offline_values(path):
    """Name -> (step, value) of an offline run's file; the step is our own."""
    from wandb.proto import wandb_internal_pb2

    found = {}
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        step = values.pop("step", None)
        for name, value in values.items():
            if isinstance(value, int | float) and not name.startswith("_"):
                found.setdefault(name, []).append((step, value))
    return found


def leveldb_records(data):
    """Records of a log in LevelDB's format behind W&B's 7 bytes: blocks of 32 KiB, pieces of (CRC, length, kind)."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if (room := 32768 - place % 32768) < 7:
            place += room
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or a last piece
            yield whole
            whole = b""


class Broken:
    """A tracker whose server is away from some call on."""

    name = "Broken"

    def __init__(self, fails_at):
        self.fails_at, self.calls = fails_at, []

    def start(self, config, folder, first_step):
        self._call("start")

    def log(self, step, values):
        self._call("log")

    def tell(self, step, name, text):
        self._call("tell")

    def finish(self):
        self._call("finish")

    def _call(self, name):
        self.calls.append(name)
        if name == self.fails_at:
            raise ConnectionError("no route\nto host")


@pytest.mark.parametrize("fails_at", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_told_of_once_and_ends_alone(fails_at, tmp_path, monkeypatch):
    from megatron_medx.training.trackers import told

    broken, sound = Broken(fails_at), Broken("never")
    monkeypatch.setattr(told, "trackers_of", lambda config: [broken, sound])
    config, folder = run_of(tmp_path / "run")
    screen = tell_all(config, folder)
    assert screen == ["Broken failed and is told nothing more; the run goes on: no route to host"]
    (event,) = events.read(folder)
    assert (event["event"], event["tracker"], event["why"]) == ("tracker_failed", "Broken", "no route to host")
    assert broken.calls[-1] == fails_at and sound.calls == ["start", "log", "log", "log", "tell", "finish"]


class Stuck(Broken):
    """A tracker that waits for its server."""

    def __init__(self):
        super().__init__("never")
        self.free = threading.Event()

    def start(self, config, folder, first_step):
        self.free.wait()


def test_a_tracker_that_hangs_holds_neither_a_step_nor_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(the_module, "FINISH_PATIENCE_S", 0.05)
    monkeypatch.setattr(the_module, "MOST_WAITING", 3)
    config, folder = run_of(tmp_path / "run")
    said = []
    for num_steps in (2, 5):
        stuck = Stuck()
        beside = Beside(stuck, config, folder, lambda tracker, why: said.append(why))
        for step in range(num_steps):
            beside.log(step, {"train/loss": 1.0})
        beside.finish()
        stuck.free.set()
    assert said == ["it has not taken all within 0.05 s of the end", "3 things wait for it"]


def test_nothing_starts_before_something_is_told(tmp_path):
    config, folder = run_of(tmp_path / "run", tensorboard=True)
    monitor = StepMonitor(config, folder, io.StringIO())
    monitor.close()
    assert not list(folder.iterdir())


def test_a_run_has_the_trackers_that_its_section_names(tmp_path):
    from megatron_medx.training.trackers.told import trackers_of

    config, _ = run_of(tmp_path / "run")
    assert trackers_of(config) == []
    config, _ = run_of(tmp_path / "run", tensorboard=True, wandb_project="p", mlflow_uri="file:x")
    assert [type(tracker) for tracker in trackers_of(config)] == [TensorBoard, WeightsAndBiases, MLflow]
