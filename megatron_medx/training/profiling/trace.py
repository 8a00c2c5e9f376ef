"""Where the time of a rank's steps went, from the trace of torch's profiler.

With a GPU its kernels count, each for the part that launched it; without one the time of the thread that trains.
"""

import gzip
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from megatron_medx.training.profiling.intervals import Intervals
from megatron_medx.training.profiling.timeline import OPERATORS, Span, Timeline, Work
from megatron_medx.training.profiling.vocabulary import (
    BETWEEN,
    COMMUNICATION,
    DATA_WAIT,
    MARK,
    OTHER,
    PIPELINE,
    STEP,
    kind_of,
)

GPU_EVENTS = ("kernel", "gpu_memcpy", "gpu_memset")

LAUNCHES = ("cuda_runtime", "cuda_driver")

COLLECTIVE = "gloo:"
"""Names of collectives that gloo's own threads carry out begin with it."""

NUM_TOP = 20
"""Operations that are named, those that took longest."""


@dataclass(slots=True)
class Times:
    """Seconds of all steps of a trace."""

    step_s: list[float]
    """Of each step, by the clock."""
    on_gpu: bool
    """Seconds below are of the GPU's kernels, else of the CPU's training thread."""
    seconds: Counter[Work] = field(default_factory=Counter)
    """By part, pass and kind. Kernels that overlap are counted each."""
    busy_s: float = 0.0
    """In which at least one kernel ran; without a GPU, in which the thread did something other than wait."""
    data_wait_s: float = 0.0
    """In which the thread that trains waited for rows."""
    top: list[tuple[str, float]] = field(default_factory=list)
    """Name and seconds of the operations that took longest."""

    def working_s(self) -> float:
        """Seconds of all but communication and waiting: what makes a rank slow of itself."""
        return sum(seconds for work, seconds in self.seconds.items() if not waits(work))

    def by_part(self) -> dict[str, float]:
        """Seconds of each part, both passes."""
        return _sums((work.part, seconds) for work, seconds in self.seconds.items())

    def by_kind(self) -> dict[str, float]:
        """Seconds of each kind of work."""
        return _sums((work.kind, seconds) for work, seconds in self.seconds.items())


def waits(work: Work) -> bool:
    """Whether this is time in which a rank waits for others: for rows, for another stage, in a collective."""
    return work.kind == COMMUNICATION or work.part in (DATA_WAIT, PIPELINE)


def read_trace(path: Path) -> list[dict]:
    """The events of a trace."""
    return orjson.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def times(events: Sequence[dict]) -> Times:
    """Add up the time in the steps of a trace; what lies between its steps is left out."""
    spans, collectives = _spans(events)
    steps = [(span.start, span.end) for of_thread in spans.values() for span in of_thread if span.name == MARK + STEP]
    step_s = [(end - start) / 1e6 for start, end in sorted(steps)]
    timelines = _timelines(spans)
    trainer = next((timelines[thread] for thread, of_thread in spans.items() if _trains(of_thread)), None)
    on_gpu = any(event.get("cat") in GPU_EVENTS for event in events)
    found = Times(step_s, on_gpu)
    host = _on_cpu(trainer, Intervals(collectives)) if trainer else Counter()
    found.data_wait_s = sum(seconds for work, seconds in host.items() if work.part == DATA_WAIT)
    if on_gpu:
        _count_kernels(found, events, timelines, Intervals(steps))
        return found
    found.seconds = host
    found.busy_s = found.working_s()
    names = trainer.seconds_by_name() if trainer else Counter()
    found.top = [(name, seconds) for name, seconds in names.most_common() if name.startswith(OPERATORS)][:NUM_TOP]
    return found


def _spans(events: Iterable[dict]) -> tuple[dict[int, list[Span]], list[tuple[float, float]]]:
    """Spans of each thread; and those of collectives on gloo's threads."""
    spans: dict[int, list[Span]] = defaultdict(list)
    collectives = []
    for event in events:
        if event.get("ph") != "X" or event.get("cat") not in ("cpu_op", "user_annotation"):
            continue
        start, facts = float(event["ts"]), event.get("args", {})
        end = start + float(event["dur"])
        if event["name"].startswith(COLLECTIVE):
            collectives.append((start, end))
            continue
        number, undoes = facts.get("Sequence number"), bool(facts.get("Fwd thread id"))
        spans[event["tid"]].append(Span(start, end, event["name"], number, undoes))
    return spans, collectives


def _trains(spans: Iterable[Span]) -> bool:
    return any(span.name == MARK + STEP for span in spans)


def _timelines(spans: dict[int, list[Span]]) -> dict[int, Timeline]:
    """Of each thread: first the one that trains, whose forward operations the autograd engine's threads refer to."""
    forward_parts: dict[int, str] = {}
    ordered = sorted(spans.items(), key=lambda item: not _trains(item[1]))
    return {
        thread: Timeline(of_thread, forward_parts, only_in_steps=_trains(of_thread)) for thread, of_thread in ordered
    }


def _on_cpu(trainer: Timeline, collectives: Intervals) -> Counter[Work]:
    """Seconds of the thread that trains; between operators it waits for a collective as long as one is under way."""
    seconds: Counter[Work] = Counter()
    for start, end, work, _ in trainer.pieces:
        waited = collectives.covered(start, end) if work.kind == BETWEEN else 0.0
        seconds[work] += (end - start - waited) / 1e6
        if waited:
            seconds[work._replace(kind=COMMUNICATION)] += waited / 1e6
    return seconds


def _count_kernels(found: Times, events: Iterable[dict], timelines: dict[int, Timeline], steps: Intervals) -> None:
    """Count each kernel that a step launched for the part that its thread worked for then."""
    launches = {
        event["args"]["correlation"]: (event["tid"], float(event["ts"]))
        for event in events
        if event.get("cat") in LAUNCHES and "correlation" in event.get("args", {})
    }
    ran, names = [], Counter()
    for event in events:
        launch = launches.get(event.get("args", {}).get("correlation")) if event.get("cat") in GPU_EVENTS else None
        if launch is None or not steps.hold(launch[1]):
            continue
        start, length = float(event["ts"]), float(event["dur"])
        ran.append((start, start + length))
        names[event["name"]] += length / 1e6
        thread, time_us = launch
        work = timelines[thread].at(time_us) if thread in timelines else None
        kind = kind_of(event["name"])
        found.seconds[work._replace(kind=kind) if work else Work(OTHER, False, kind)] += length / 1e6
    found.busy_s, found.top = Intervals(ran).length / 1e6, names.most_common(NUM_TOP)


def _sums(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for key, seconds in pairs:
        sums[key] += seconds
    return dict(sums)
