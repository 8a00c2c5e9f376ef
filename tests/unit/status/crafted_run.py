"""Run folders written by hand, each file at a chosen time."""

import datetime
import itertools
import json
import os

from megatron_medx.config.files import write_run_yaml
from megatron_medx.recipes import get_recipe
from megatron_medx.status.lines import status_lines
from megatron_medx.status.report import run_status

START_S = 1_700_000_000.0
"""When the crafted runs were prepared, seconds since 1970."""


class CraftedRun:
    """A run folder written by hand, each file at a chosen time after START_S."""

    def __init__(self, folder):
        self.folder, self.config = folder, get_recipe("demo")
        (folder / "logs").mkdir(parents=True)
        write_run_yaml(self.config, folder / "run.yaml", {})
        self.date("run.yaml", 0)

    def date(self, name, after_s):
        os.utime(self.folder / name, (START_S + after_s, START_S + after_s))

    def write(self, name, text, after_s):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.date(name, after_s)

    def metrics(self, num_steps, after_s, **changed):
        """Steps 1 to n of 0.5 s, 100 tokens, the loss 10 - step / 10; `changed` maps a key to {step: value}."""
        lines = []
        for step in range(1, num_steps + 1):
            line = {"step": step, "loss": 10 - step / 10, "tokens": 100, "step_time_s": 0.5}
            line |= {"data_wait_s": 0.1, "model_tflops_per_s": 4.0}
            lines.append(line | {key: values[step] for key, values in changed.items() if step in values})
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines), after_s)

    def event(self, name, after_s, **facts):
        """Append to events.jsonl as of that time."""
        time = datetime.datetime.fromtimestamp(START_S + after_s, datetime.UTC)
        line = {"time": time.isoformat(timespec="milliseconds"), "event": name, **facts}
        with open(self.folder / "events.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        self.date("events.jsonl", after_s)

    def checkpoint(self, step, after_s, whole=True):
        folder = f"checkpoints/iter_{step:07d}"
        self.write(f"{folder}/__0_0.distcp", "x" * 700, after_s)
        if whole:
            self.write(f"{folder}/metadata.json", "{}", after_s)
            self.write("checkpoints/latest_checkpointed_iteration.txt", f"{step}", after_s)

    def status(self, after_s):
        return run_status(self.folder, START_S + after_s)

    def row(self, name, after_s):
        """The lines of one name, without it; None where there is no such line."""
        lines = status_lines(self.status(after_s))
        width = len(lines[0]) - len(lines[0][3:].lstrip())
        first = next((number for number, line in enumerate(lines) if line[:width].strip() == name), None)
        if first is None:
            return None
        rest = itertools.takewhile(lambda line: not line[:width].strip(), lines[first + 1 :])
        return "\n".join(line[width:] for line in [lines[first], *rest])

    def state(self, after_s):
        return self.status(after_s)["state"]["name"]


STARTED = "=== started 2026-11-22T22:30:15 ===\n"
"""What a start adds to the log of a rank before anything else."""
