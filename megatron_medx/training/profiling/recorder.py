"""`training.profile=A:B`: torch's profiler over steps A to B of every rank, and what it leaves in RUN/profile.

    trace_rank_<n>.json.gz     of each rank, for ui.perfetto.dev
    summary_rank_<n>.json      where its time went, by part of the step (summary.py)
    summary.txt                the same of all ranks for people, written by the rank that reports

A launch that begins between A and B records the steps that are left; one that ends between them writes nothing.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import megatron.training.training as megatron_loop
import torch
import torch.distributed as dist
from megatron.training import get_args
from torch.nn import Module
from torch.profiler import ProfilerActivity, profile, record_function

from megatron_medx.config.profiling import profiled_steps
from megatron_medx.config.run import RunConfig
from megatron_medx.run_folder import events
from megatron_medx.run_folder.names import PROFILE, PROFILE_SUMMARY, summary_file, trace_file
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.profiling.parts import OpenRange, named_parts
from megatron_medx.training.profiling.summary import summarize, summary_lines
from megatron_medx.training.profiling.trace import read_trace, times
from megatron_medx.training.profiling.vocabulary import MARK, STEP


def install(config: RunConfig, folder: Path, monitor: StepMonitor) -> None:
    """Wrap `train_step` of a run that is to be profiled, or whose parts Nsight is to see; else leave it alone."""
    if config.training.profile:
        _record_steps(StepRecorder(config, folder, monitor))
    if config.training.nvtx:
        _name_parts_for_good(torch.cuda.nvtx.range)


class StepRecorder:
    """Records some steps of this rank.

    Args:
        config: the run, with `training.profile`.
        folder: of the run.
        monitor: tells people.
    """

    def __init__(self, config: RunConfig, folder: Path, monitor: StepMonitor):
        self._first, self._last = profiled_steps(config)
        self._run_folder, self._monitor = folder, monitor
        self._rank, self._world_size = int(os.environ["RANK"]), config.parallel.world_size
        self._marks = contextlib.ExitStack()
        self._profiler: profile | None = None

    @contextlib.contextmanager
    def around(self, step: int, chunks: Sequence[Module], optimizer: Any) -> Iterator[None]:
        """Begin in front of the first step that is to be recorded, end behind the last and write.

        Args:
            step: the number of the step that is made within, from 1.
            chunks, optimizer: as `train_step` takes them.
        """
        if self._profiler is None and self._first <= step <= self._last:
            self._first = step  # later than asked for, where a launch begins between the two
            self._begin(chunks, optimizer)
        with _mark(STEP) if self._profiler else contextlib.nullcontext():
            yield
        if self._profiler is not None and step == self._last:
            self._end()

    def _begin(self, chunks: Sequence[Module], optimizer: Any) -> None:
        self._marks.enter_context(named_parts(chunks, optimizer, _mark))
        cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profiler = profile(activities=[ProfilerActivity.CPU, *cuda])
        self._profiler.start()

    def _end(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels that run behind the last launch belong to the step
        self._profiler.stop()
        self._marks.close()
        self._tell(self._written())
        self._profiler = None

    def _written(self) -> dict:
        """The summary of this rank, written beside its trace."""
        folder = self._run_folder / PROFILE
        folder.mkdir(exist_ok=True)
        trace = folder / trace_file(self._rank)
        self._profiler.export_chrome_trace(str(trace))
        summary = summarize(times(read_trace(trace)), self._rank, self._first, self._last)
        (folder / summary_file(self._rank)).write_text(json.dumps(summary, indent=1) + "\n")
        return summary

    def _tell(self, summary: dict) -> None:
        reporter = self._world_size - 1
        summaries = [None] * self._world_size if self._rank == reporter else None
        dist.gather_object(summary, summaries, dst=reporter)
        if summaries is None:
            return
        path = self._run_folder / PROFILE / PROFILE_SUMMARY
        path.write_text("\n".join(summary_lines(summaries)) + "\n")
        facts = {"first_step": self._first, "last_step": self._last, "ranks": self._world_size}
        events.append(self._run_folder, "profiled", **facts)
        self._monitor.announce(f"steps {self._first} to {self._last} are profiled: {path}, traces beside it")


def _record_steps(recorder: StepRecorder) -> None:
    """The profiler begins and ends between steps, so that neither counts as time of a step."""
    original = megatron_loop.train_step

    @functools.wraps(original)
    def recorded(forward_step_func, data_iterator, model, optimizer, *args, **kwargs):
        with recorder.around(get_args().curr_iteration + 1, model, optimizer):
            return original(forward_step_func, data_iterator, model, optimizer, *args, **kwargs)

    megatron_loop.train_step = recorded


def _name_parts_for_good(open_range: OpenRange) -> None:
    """Model and optimizer are at hand when the first step begins; from then on their parts open ranges."""
    original, ranges, named = megatron_loop.train_step, contextlib.ExitStack(), False

    @functools.wraps(original)
    def in_range(forward_step_func, data_iterator, model, optimizer, *args, **kwargs):
        nonlocal named
        if not named:
            ranges.enter_context(named_parts(model, optimizer, open_range))
            named = True
        with open_range(f"{STEP} {get_args().curr_iteration + 1}"):
            return original(forward_step_func, data_iterator, model, optimizer, *args, **kwargs)

    megatron_loop.train_step = in_range


def _mark(part: str) -> AbstractContextManager:
    return record_function(MARK + part)
