"""Starts the programs that measure, each a process of its own, and reads what they leave: figures, or why they failed.

A process that ends leaves the whole GPU to the next one, and one that fails costs its own figures alone.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu.shapes import PROFILED_ROWS, Device
from megatron_medx.config.files import write_run_yaml
from megatron_medx.config.run import RunConfig
from megatron_medx.run_folder.names import GATE_FILE, LOGS, METRICS_FILE, PROFILE, rank_log, summary_file
from megatron_medx.training.step_lines import read_metrics

WARM_STEPS, COUNTED_STEPS = 3, 8
"""Steps of a run before those that count, and those."""

TAIL_CHARS = 4000
"""Of a failed program's output that is kept."""


H200_HBM_BYTES_PER_S = 4.8e12
"""NVIDIA's data sheet of the H200 SXM; its other rates are the H100's."""


class Failed(Exception):
    """A program did not do its work; the message is what it said last."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where measuring programs are started from and what they may take.

    Attributes:
        work: folder that holds everything they write.
        timeout_s: seconds after which one is stopped.
    """

    work: Path
    timeout_s: float

    def run(self, words: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        """Run `python -m WORDS` to its end, its output in `log`.

        Raises:
            Failed: another exit code than 0, or not done in time.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", *words],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(environment or {})},
                    timeout=self.timeout_s,
                )
            except subprocess.TimeoutExpired as error:
                raise Failed(f"{words[0]} was not done after {self.timeout_s:.0f} s: {tail(log)}") from error
        if done.returncode:
            raise Failed(f"{words[0]} ended with code {done.returncode}: {tail(log)}")

    def fresh(self, name: str) -> Path:
        """A folder name below `work` that nothing lies in."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder


def tail(log: Path) -> str:
    """The end of a log, as far as it is worth keeping."""
    text = log.read_text(errors="replace") if log.is_file() else "it has no log"
    return text[-TAIL_CHARS:].strip()


def measured(
    programs: Programs,
    config: RunConfig,
    *,
    steps: tuple[int, int] = (WARM_STEPS, COUNTED_STEPS),
    changes: Sequence[str] = (),
) -> dict:
    """Train and return the figures of the counted steps.

    Args:
        programs: starts it.
        config: the run; its folder must not exist.
        steps: warm ones and counted ones.
        changes: of train.CHANGES.

    Raises:
        Failed: the run did not make its steps.
    """
    facts = _train(programs, config, sum(steps), [word for name in changes for word in ("--change", name)])
    return figures(read_metrics(config.run_folder / METRICS_FILE)[steps[0] :], config.model.num_layers) | facts


def profiled(programs: Programs, config: RunConfig, warm_steps: int = WARM_STEPS) -> dict:
    """Train with few rows a step and return the seconds of one step by part and kind; of the step and the GPU.

    Raises:
        Failed: the run did not make its steps.
    """
    step = warm_steps + 1
    config.training.global_batch_rows, config.training.profile = PROFILED_ROWS, f"{step}:{step}"
    facts = _train(programs, config, step, [])
    return facts | profile_figures(json.loads((config.run_folder / PROFILE / summary_file(0)).read_text()))


def profile_figures(summary: dict) -> dict:
    """What the summary of one profiled step says (training/profiling/summary.py), in the form that is kept."""
    kinds = {part: entry["kinds"] for part, entry in summary["parts"].items()}
    return {
        "profiled_step_s": sum(summary["step_s"]),
        "busy_s": summary["busy_s"],
        "data_wait_s": summary["data_wait_s"],
        "by_part": {part: sum(seconds.values()) for part, seconds in kinds.items()},
        "by_part_and_kind": kinds,
        "rows": PROFILED_ROWS,
    }


def figures(steps: Sequence[dict], num_layers: int) -> dict:
    """What the lines of metrics.jsonl of the counted steps amount to.

    Raises:
        Failed: there are none, or a loss is missing.
    """
    if not steps or any(step["loss"] is None for step in steps):
        raise Failed(f"steps without a finite loss: {[step['loss'] for step in steps]}")
    seconds = sum(step["step_time_s"] for step in steps)
    tflop = sum(step["model_tflops_per_s"] * step["step_time_s"] for step in steps)
    return {
        "tokens_per_s": sum(step["tokens"] for step in steps) / seconds,
        "model_tflops_per_s": tflop / seconds,
        "step_s": seconds / len(steps),
        "data_wait_share": sum(step["data_wait_s"] for step in steps) / seconds,
        "tokens": sum(step["tokens"] for step in steps),
        "images": sum(step["images"] for step in steps),
        "steps": len(steps),
        "last_loss": steps[-1]["loss"],
        "layers": num_layers,
    }


def _train(programs: Programs, config: RunConfig, num_steps: int, options: Sequence[str]) -> dict:
    folder = config.run_folder
    given, out = folder.with_name(f"{folder.name}.yaml"), folder.with_name(f"{folder.name}.json")
    given.parent.mkdir(parents=True, exist_ok=True)
    write_run_yaml(config, given, {})
    words = ["benchmarks.gpu.train", str(given), str(out), "--steps", str(num_steps), *options]
    try:
        programs.run(words, folder.with_name(f"{folder.name}.log"))
    except Failed as error:
        raise Failed(f"{error}\n{tail(folder / LOGS / rank_log(0))}") from error
    if not out.is_file():
        raise Failed(f"the run ended before step {num_steps}: {tail(folder / LOGS / rank_log(0))}")
    return json.loads(out.read_text())


def rival(
    programs: Programs, config: RunConfig, *, batches: Sequence[int], steps: int, by_length: bool = False
) -> dict:
    """Figures of `transformers` on the samples of our run, of each batch size, and of the fastest as `best`.

    Raises:
        Failed: it did not run, or no batch size fits.
    """
    folder = config.run_folder
    given, out = folder.with_name(f"{folder.name}.yaml"), folder.with_name(f"{folder.name}.json")
    given.parent.mkdir(parents=True, exist_ok=True)
    write_run_yaml(config, given, {})
    words = ["benchmarks.gpu.rival", str(given), str(out), "--steps", str(steps), "--batches", *map(str, batches)]
    programs.run([*words, "--sorted"] if by_length else words, folder.with_name(f"{folder.name}.log"))
    found = json.loads(out.read_text())
    return found | {"best": fastest(found["batches"])}


def fastest(batches: dict[str, dict]) -> dict:
    """Figures of the batch size with most tokens a second, with `samples`.

    Raises:
        Failed: none fits.
    """
    ran = {size: of for size, of in batches.items() if "error" not in of}
    if not ran:
        raise Failed(f"no batch size of {', '.join(batches)} samples fits: {batches}")
    size = max(ran, key=lambda name: ran[name]["tokens_per_s"])
    return ran[size] | {"samples": int(size)}


def gate(programs: Programs, config: RunConfig) -> dict:
    """`medx train` of a run that has to pass the precision gate; what the gate recorded, and the losses of the run.

    A gate that is not passed is a result, not a failure.

    Raises:
        Failed: it ended without a verdict.
    """
    folder = config.run_folder
    given = folder.with_name(f"{folder.name}.yaml")
    given.parent.mkdir(parents=True, exist_ok=True)
    write_run_yaml(config, given, {})
    log, failure = folder.with_name(f"{folder.name}.log"), None
    try:
        programs.run(["megatron_medx.cli", "train", str(given)], log)
    except Failed as error:
        failure = error
    if not (folder / GATE_FILE).is_file():
        raise failure or Failed(f"no verdict of the gate: {tail(log)}")
    record = json.loads((folder / GATE_FILE).read_text())
    if failure and record["passed"]:
        raise failure
    losses = [step["loss"] for step in read_metrics(folder / METRICS_FILE)]
    return {name: record[name] for name in ("passed", "gap", "steps", "why")} | {
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "trials": record["trials"],
    }


def specs(programs: Programs) -> dict:
    """What specs.py found.

    Raises:
        Failed: it did not run.
    """
    out = programs.work / "specs.json"
    out.unlink(missing_ok=True)
    programs.run(["benchmarks.gpu.specs", str(out)], programs.work / "specs.log")
    return json.loads(out.read_text())


def data_folder(programs: Programs, source: Path) -> Path:
    """The data folder that `medx data build` makes of a source, made once.

    Raises:
        Failed: it could not be built.
    """
    folder = programs.work / "data"
    if not (folder / "manifest.json").is_file():
        programs.run(["megatron_medx.cli", "data", "build", str(source), str(folder)], programs.work / "data.log")
    return folder


def decode(programs: Programs, tiny: bool = False) -> dict:
    """What decode.py found.

    Raises:
        Failed: it did not run.
    """
    out = programs.work / "decode.json"
    out.unlink(missing_ok=True)
    words = ["--images", "12", "--rounds", "1"] if tiny else []
    programs.run(["benchmarks.gpu.decode", str(out), *words], programs.work / "decode.log")
    return json.loads(out.read_text())


def predicted_step_s(config: RunConfig, device: Device) -> float:
    """Seconds of a step as `medx plan` predicts them for one GPU of this kind, from the run's own data folder.

    Raises:
        Failed: this checkout has no planner.
    """
    try:
        from megatron_medx.planner import hardware, step_time, workload
    except ImportError as error:
        raise Failed(f"no planner to ask: {error}") from error
    of_device = replace(hardware.H100, memory_bytes=float(device.memory_bytes))
    if "H200" in device.name:
        of_device = replace(of_device, hbm_bytes_per_s=H200_HBM_BYTES_PER_S)
    return step_time.predict(config, workload.run_workload(config), of_device).step_s
