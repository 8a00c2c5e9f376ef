"""What a task measures on its GPU, or on the CPU where there is none: a product of matrices, and sums over ranks.

All inputs are integers, so small that every sum of them is exact in fp32, whatever the order. So results are equal bit
for bit, on any machine that computes rightly.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

MATRIX = {"cuda": 8192, "cpu": 512}
"""Rows and columns. 8192: 1.1e12 operations, 2 ms on an H100, large enough to reach its power limit."""

MULTIPLY_S = {"cuda": 1.0, "cpu": 0.3}
"""Seconds of products, at least: on a GPU clocks and temperature need time to show; on a CPU it is for tests."""

MULTIPLY_MOST_S = 12.0
"""And at most, while the driver is asked for the clocks."""

BLOCK = {"cuda": 20, "cpu": 1}
"""Products between two looks at the clock."""

SUM_VALUES = {"cuda": 64 * 2**20, "cpu": 2**20}
"""fp32 values of an all-reduce: 256 MB, large enough for the full rate of a link; 4 MB over gloo."""

SUM_REPEATS = 4


def device_of(local_rank: int) -> torch.device:
    """The GPU of this task, made the current one of this thread; else the CPU, with one thread."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # tasks share the cores
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def wait_for(device: torch.device) -> None:
    """Return when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def multiply(device: torch.device, is_asking: Callable[[], bool]) -> dict:
    """Multiply the same two matrices over and over.

    Args:
        device: of this task.
        is_asking: called between blocks; while it is true products go on, so that clocks are seen under load.

    Returns:
        `multiply_s`, of one product; `checksum`, of the first result; `num_odd`, later results that differ from it.
        Of a GPU the median block counts, as a throttled one is slow all the time; of a CPU the fastest, and only the
        time that this thread had it, since others use it, too.
    """
    kind, generator = device.type, torch.Generator().manual_seed(0)
    clock = time.perf_counter if kind == "cuda" else time.thread_time
    precision = torch.bfloat16 if kind == "cuda" else torch.float32
    # -128..127 are exact in bf16. A sum of 8192 products of two has a standard deviation of 5e5: below 2^24, so exact.
    left, right = (
        torch.randint(-128, 128, (MATRIX[kind],) * 2, generator=generator, dtype=torch.int16).to(device, precision)
        for _ in range(2)
    )
    first = left @ right
    wait_for(device)
    times, num_odd, start = [], 0, time.monotonic()
    while (spent := time.monotonic() - start) < MULTIPLY_S[kind] or (is_asking() and spent < MULTIPLY_MOST_S):
        before = clock()
        for _ in range(BLOCK[kind]):
            result = left @ right
        wait_for(device)
        times.append((clock() - before) / BLOCK[kind])
        num_odd += not torch.equal(first, result)
    typical = statistics.median(times) if kind == "cuda" else min(times)
    return {"multiply_s": typical, "checksum": checksum(first), "num_odd": num_odd}


def checksum(values: torch.Tensor) -> str:
    """A number that changes with any value and with the order of values: 64 bits, in hexadecimal."""
    bits = values.view(torch.int16 if values.element_size() == 2 else torch.int32).flatten().to(torch.int64)
    places = torch.arange(len(bits), device=bits.device) * 2 + 1  # odd, so that no bit of a value is lost
    return f"{(bits * places).sum().item() & (2**64 - 1):016x}"


def sum_over(group: dist.ProcessGroup | None, device: torch.device) -> dict:
    """All-reduce over a group, None for all ranks; collective.

    Returns:
        `sum_s`, of the fastest of SUM_REPEATS; `gb_s`, the rate of the slowest link in a ring of the ranks,
        2 (n - 1) / n x bytes / s, in 1e9 bytes; `is_right`: every value is the sum that n ranks must give.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    pattern = torch.arange(SUM_VALUES[device.type], dtype=torch.float32, device=device).remainder_(3)
    # at most 2 x n (n + 1) / 2: below 2^24, so exact, for up to 4,095 ranks
    expected, times, is_right = pattern * (size * (size + 1) // 2), [], True
    for _ in range(1 + SUM_REPEATS):
        values = pattern * (rank + 1)
        wait_for(device)
        before = time.perf_counter()
        dist.all_reduce(values, group=group)
        wait_for(device)
        times.append(time.perf_counter() - before)
        is_right &= torch.equal(values, expected)
    fastest = min(times[1:])  # the first one connects
    num_bytes = pattern.numel() * pattern.element_size()
    return {"sum_s": fastest, "gb_s": 2 * (size - 1) / size * num_bytes / fastest / 1e9, "is_right": is_right}
