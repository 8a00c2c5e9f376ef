"""Times and memory of every rank, every few steps: which rank holds the run up, and which is short of memory.

Comes in: the begin of a step, the moment at which a rank's own gradients are ready, the step's end. Goes out: a line of
`ranks.jsonl`, whose lists are by rank (run_folder/quantities.py, RANKS), written by the reporting rank. In the steps
between nothing is measured here and nothing is sent.
"""

import time
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_medx.config.run import RunConfig
from megatron_medx.run_folder.names import RANKS_FILE
from megatron_medx.training.machine import peak_memory_bytes
from megatron_medx.training.step_lines import StepLines

MEASURED = ("step_time_s", "busy_s", "data_wait_s", "memory_gb")
"""Keys of a line that are lists, in the order in which ranks send them."""


class GradientClock:
    """From a step's begin until this rank's own gradients are ready: on a GPU by its own clock, without waiting."""

    def __init__(self) -> None:
        self._marks: list[torch.cuda.Event | float] = []

    def start(self) -> None:
        """The step begins."""
        self._marks = [self._now()]

    def stop(self) -> None:
        """All that the gradients are made by is done, or under way on the GPU. Without `start` nothing is marked."""
        if self._marks:
            self._marks = [self._marks[0], self._now()]

    def read_s(self) -> float:
        """Seconds between the two, 0 where one is missing; waits for the GPU to have passed the second."""
        if len(self._marks) < 2:
            return 0.0
        start, end = self._marks
        self._marks = []
        if isinstance(start, float):
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _now(self) -> "torch.cuda.Event | float":
        if not torch.cuda.is_available():
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark


class RankTimes:
    """Measures the steps that are due, on every rank, and gathers what was found.

    Args:
        config: the run; `log.ranks_every_steps` says which steps are due.
        folder: run folder.
    """

    def __init__(self, config: RunConfig, folder: Path):
        self._every_steps = config.log.ranks_every_steps
        self._lines = StepLines(folder / RANKS_FILE)
        self._clock = GradientClock()

    def is_due(self, step: int) -> bool:
        """Whether a step is told of, the same answer on every rank."""
        return bool(self._every_steps) and step % self._every_steps == 0

    def start_step(self, step: int) -> None:
        """A step begins."""
        if self.is_due(step):
            self._clock.start()

    def gradients_ready(self) -> None:
        """This rank's own gradients are ready to be summed with the others'."""
        self._clock.stop()

    def gather(self, step: int, step_time_s: float, data_wait_s: float) -> dict | None:
        """The line of a step that is due, the same on every rank; None of others. Collective over all ranks."""
        if not self.is_due(step):
            return None
        values = (step_time_s, self._clock.read_s(), data_wait_s, peak_memory_bytes() / 1e9)
        mine = torch.tensor(values, dtype=torch.float64, device=torch.cuda.current_device())
        of_all = mine.new_empty(dist.get_world_size() * len(mine))
        dist.all_gather_into_tensor(of_all, mine)
        columns = of_all.view(-1, len(mine)).T.tolist()
        found = {key: [round(value, 6) for value in column] for key, column in zip(MEASURED, columns, strict=True)}
        return {"step": step, **found}

    def write(self, line: dict) -> None:
        """Add a line to ranks.jsonl; of the reporting rank."""
        self._lines.write(line)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
