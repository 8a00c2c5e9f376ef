"""Where a step's time goes, from the trace of torch's profiler that train.py wrote.

Every kernel gets a part (tower, decoder, loss, optimizer, ...) and a kind (attention, matrix products, ...). The part
is the mark in which it was launched; a kernel of the backward pass belongs to the part whose forward operation has the
same autograd sequence number. The kind is read off its name.
"""

import bisect
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.train import MARK

KINDS = (
    ("attention", re.compile(r"flash|fmha|sdpa|attention|attn|softmax.*(causal|mask)", re.IGNORECASE)),
    ("matrix products", re.compile(r"gemm|nvjet|cutlass|cublas|wgmma|xmma|splitk", re.IGNORECASE)),
    ("casts to FP8", re.compile(r"cast|quantize|amax|fp8|swizzle", re.IGNORECASE)),
    ("copies", re.compile(r"memcpy|memset|copy", re.IGNORECASE)),
    ("norms", re.compile(r"rmsnorm|layer_?norm|ln_fwd|ln_bwd|welford", re.IGNORECASE)),
)
"""Kind -> what its kernels' names hold, in the order in which they are asked; all others are ELEMENTWISE."""

ELEMENTWISE = "elementwise and others"

OTHER = "other"
"""Part of what was launched in no mark: gradient norm, logging, transfers of the row."""

ACCUMULATION = "gradient accumulation"
"""Part of what adds a parameter's gradient to its fp32 buffer, whatever part the parameter is of."""

BACKWARD, ACCUMULATE = "autograd::engine::evaluate_function", "AccumulateGrad"

GPU_EVENTS = ("kernel", "gpu_memcpy", "gpu_memset")

LAUNCHES = ("cuda_runtime", "cuda_driver")


class Span(NamedTuple):
    """Something that ran on a thread from `start` to `end` (µs)."""

    start: float
    end: float
    name: str


class Profile(NamedTuple):
    """Seconds of the GPU."""

    busy_s: float
    """In which at least one kernel ran."""
    by_part: dict[str, float]
    by_kind: dict[str, float]
    by_part_and_kind: dict[str, dict[str, float]]


def read_trace(path: Path) -> list[dict]:
    """The events of a trace."""
    with gzip.open(path, "rt") as file:
        return json.load(file)["traceEvents"]


def kind_of(kernel: str) -> str:
    """Which kind of work a kernel does, by its name.

    Example: `cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16` is attention, for that is asked first.
    """
    return next((kind for kind, pattern in KINDS if pattern.search(kernel)), ELEMENTWISE)


def profile(events: Sequence[dict]) -> Profile:
    """Seconds of the GPU by part and kind. Kernels that overlap are counted each; `busy_s` counts once."""
    part_at = parts_by_time(events)
    launches = {
        event["args"]["correlation"]: (event["tid"], float(event["ts"]))
        for event in events
        if event.get("cat") in LAUNCHES and "correlation" in event.get("args", {})
    }
    table: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    spans = []
    for event in events:
        if event.get("cat") not in GPU_EVENTS:
            continue
        start, length = float(event["ts"]), float(event["dur"])
        spans.append((start, start + length))
        launch = launches.get(event.get("args", {}).get("correlation"))
        part = part_at(*launch) if launch else OTHER
        table[part][kind_of(event["name"])] += length / 1e6
    by_kind: dict[str, float] = defaultdict(float)
    for kinds in table.values():
        for kind, seconds in kinds.items():
            by_kind[kind] += seconds
    by_part = {part: sum(kinds.values()) for part, kinds in table.items()}
    return Profile(covered(spans) / 1e6, by_part, dict(by_kind), {part: dict(kinds) for part, kinds in table.items()})


def parts_by_time(events: Iterable[dict]):
    """A function (thread, µs) -> the part that this thread worked for at that time."""
    marks: dict[int, list[Span]] = defaultdict(list)
    backward: dict[int, list[Span]] = defaultdict(list)
    forward: dict[int, tuple[float, int]] = {}  # sequence number -> (µs, thread) of the last forward operation with it
    for event in events:
        name = event.get("name", "")
        if event.get("ph") != "X" or event.get("cat") not in ("cpu_op", "user_annotation"):
            continue
        start = float(event["ts"])
        end, thread = start + float(event["dur"]), event["tid"]
        arguments = event.get("args", {})
        number = arguments.get("Sequence number")
        if name.startswith(MARK):
            marks[thread].append(Span(start, end, name.removeprefix(MARK)))
        elif name.startswith(BACKWARD):
            backward[thread].append(Span(start, end, ACCUMULATION if ACCUMULATE in name else str(number)))
        elif number is None or arguments.get("Fwd thread id"):
            continue  # the backward function itself has its forward operation's number, and that one's thread
        elif start >= forward.get(number, (0.0, 0))[0]:
            forward[number] = (start, thread)
    marked = {thread: Finder(spans) for thread, spans in marks.items()}
    evaluated = {thread: Finder(spans) for thread, spans in backward.items()}

    def part_at(thread: int, time_us: float) -> str:
        if (mark := _found(marked, thread, time_us)) is not None:
            return mark
        number = _found(evaluated, thread, time_us)
        if number == ACCUMULATION:
            return ACCUMULATION
        if number is None or number == "None" or int(number) not in forward:
            return OTHER
        time_us, thread = forward[int(number)]
        return _found(marked, thread, time_us) or OTHER

    return part_at


def _found(finders: dict[int, "Finder"], thread: int, time_us: float) -> str | None:
    return finders[thread].at(time_us) if thread in finders else None


class Finder:
    """The innermost of nested or separate spans of a thread at a time."""

    def __init__(self, spans: Iterable[Span]):
        self._spans = sorted(spans, key=lambda span: (span.start, -span.end))
        self._starts = [span.start for span in self._spans]

    def at(self, time_us: float) -> str | None:
        """Name of the span that began last of those that hold the time; None where none does.

        Spans nest at most a few deep, so those that ended before are stepped over one by one, up to eight.
        """
        last = bisect.bisect_right(self._starts, time_us) - 1
        for number in range(last, max(-1, last - 8), -1):
            if time_us <= self._spans[number].end:
                return self._spans[number].name
        return None


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals.

    Example: (0, 4), (2, 5), (7, 8) cover 6.
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def scaled(by_part: dict[str, float], profiled_rows: int, rows: int) -> dict[str, float]:
    """Seconds of a step of `rows` rows, from a profiled one of fewer: all but the optimizer grows with them.

    Example: 2 rows with decoder 0.2 and optimizer 0.05 give, for 16, decoder 1.6 and optimizer 0.05.
    """
    return {
        part: seconds if part == "optimizer" else seconds * rows / profiled_rows for part, seconds in by_part.items()
    }
